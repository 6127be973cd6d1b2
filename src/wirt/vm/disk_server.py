"""The process beside a QEMU that serves images which QEMU cannot open.

Run as ``python -P -m wirt.vm.disk_server FD`` with its settings as JSON on descriptor FD. It
opens and locks the images, leaves root for the machine's uid, listens, and says ``ready`` or
what is wrong. It ends, with everything flushed, when QEMU closes its connections.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from typing import Any

import wirt.image
from wirt.errors import WirtError
from wirt.image.gate import Neighbours
from wirt.image.nbd_server.export import Export
from wirt.image.nbd_server.listen import listening_unix
from wirt.image.nbd_server.server import Server
from wirt.image.open import open_image

_COMES_WITHIN = 120.0
_LOOKS_EVERY = 0.25
_LOG_BYTES = 256 << 10
_CODECS = ("bz2", "deflate", "isal.isal_zlib", "lzma", "zlib", "zstandard")


def main() -> int:
    with open(int(sys.argv[1]), "rb") as file:
        settings = json.loads(file.read())
    with open(settings["ready_fd"], "wb", buffering=0) as ready:
        try:
            _serve(settings, ready)
        except WirtError as error:
            logging.getLogger("wirt").error("%s", error)  # noqa: TRY400 - its words are enough
            ready.write(str(error).encode()[:1000])
            return error.exit_code
    return 0


def _serve(settings: dict[str, Any], ready: Any) -> None:
    with contextlib.ExitStack() as stack:
        exports = [_export(stack, one) for one in settings["images"]]
        if settings["uid"] and os.geteuid() == 0:
            _import_all()
            _become(settings["uid"])
        os.umask(0o077)
        _log_to(settings["log"])
        listening = stack.enter_context(listening_unix(settings["socket"]))
        server = Server(listening.socket, exports)
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ready.write(b"ready")
        watch = threading.Thread(target=_end_unless_used, args=[server, settings["parent"]])
        watch.daemon = True
        watch.start()
        server.run()


def _end_unless_used(server: Server, parent: int) -> None:
    """End a server that QEMU does not come to, at once if whoever was to start it is gone."""
    give_up = time.monotonic() + _COMES_WITHIN
    while not server.was_used:
        if time.monotonic() > give_up or (parent and os.getppid() != parent):
            server.stop()
            return
        time.sleep(_LOOKS_EVERY)


def _export(stack: contextlib.ExitStack, one: dict[str, Any]) -> Export:
    image = stack.enter_context(
        open_image(
            one["path"],
            format=one["format"],
            writable=not one["read_only"],
            gate=Neighbours(),
        )
    )
    return Export(one["export"], image, read_only=one["read_only"])


def _import_all() -> None:
    """Load what may be needed later: the machine's uid may not be able to read it."""
    for module in pkgutil.walk_packages(wirt.image.__path__, "wirt.image."):
        importlib.import_module(module.name)
    for name in _CODECS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _log_to(path: str) -> None:
    """Keep warnings (a guest's requests that failed) in a file that cannot grow."""
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("wirt").addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
