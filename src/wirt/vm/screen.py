"""The guest's screen as a picture."""

from __future__ import annotations

import os

from wirt.store.atomic import host_error, write_file
from wirt.store.machines import find
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.monitor import connect

_MAX_BYTES = 256 << 20


def screenshot(context: Context, name: str, target: str) -> None:
    """Save the guest's screen to ``target`` as PNG. Raises WrongState, CommandRefused."""
    paths = find(context.home, name)
    found = state.require_running(paths)
    # QEMU may only write into the machine's own runtime directory.
    picture = os.path.join(paths.runtime, f"screen-{os.getpid()}.png")
    try:
        with connect(paths, found.record) as qmp:
            qmp.execute("screendump", {"filename": picture, "format": "png"})
        with open(picture, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError as error:
        raise host_error(error, picture) from error
    finally:
        if os.path.lexists(picture):
            os.unlink(picture)
    write_file(os.path.abspath(target), data, mode=0o644)
