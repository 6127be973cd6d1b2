"""The server: a listening socket, one thread for each client, and an orderly end."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence

import msgspec

from wirt.errors import ProtocolError, Timeout, UsageError, WirtError
from wirt.image.nbd_server.export import Export
from wirt.image.nbd_server.session import Session
from wirt.protocols.deadline import Deadline
from wirt.protocols.nbd.line import Line, Tls
from wirt.protocols.nbd.server_handshake import Chosen, Hangup, admit

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
MOST_CLIENTS = 32
_AFTER_TROUBLE = 0.1


class Limits(msgspec.Struct, frozen=True):
    """What clients may cost."""

    clients: int = MOST_CLIENTS
    """Connections at one time; more are closed at once."""
    handshake: float = HANDSHAKE_SECONDS
    """Seconds until a client must have chosen an export."""


class Offer:
    """The exports of a server, as the handshake sees them. The first is the default."""

    def __init__(self, exports: Sequence[Export], *, tls_required: bool) -> None:
        self.tls_required = tls_required
        self._exports = {export.name: export for export in exports}
        if len(self._exports) < len(exports):
            raise UsageError("two exports have one name", hint="give each image its --export")
        self._default = exports[0]

    def names(self) -> Sequence[str]:
        return tuple(self._exports)

    def find(self, name: str) -> Export | None:
        return self._exports.get(name) or (None if name else self._default)


class Server:
    """Serves ``exports`` on ``listener``; closes neither.

    Without ``persistent`` it ends when the last client has gone. ``stop`` may be called from
    any thread, and from a signal handler.
    """

    def __init__(
        self,
        listener: socket.socket,
        exports: Sequence[Export],
        *,
        tls: Tls | None = None,
        persistent: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._listener = listener
        self._exports = exports
        self._offer = Offer(exports, tls_required=tls is not None)
        self._tls = tls
        self._persistent = persistent
        self._limits = limits or Limits()
        self._lock = threading.RLock()  # a signal may call `stop` while its thread has it
        self._clients: dict[Line, threading.Thread] = {}
        self._served = 0
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until ``stop``, or until the last client has gone; then flush.

        An exception (Ctrl-C) ends it in the same order. Raises ImageError if what was
        written could not be made durable.
        """
        self._listener.setblocking(False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._wake_read, selectors.EVENT_READ)
                while not self._is_over():
                    for key, _ in selector.select():
                        self._accept() if key.fileobj is self._listener else self._drain()
        finally:
            self._end()

    @property
    def was_used(self) -> bool:
        """Some client has chosen an export."""
        return self._served > 0

    def stop(self) -> None:
        """Let ``run`` come to its end."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._wake_write >= 0:
                os.write(self._wake_write, b"!")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _is_over(self) -> bool:
        if self._stopping:
            return True
        with self._lock:
            return not self._persistent and self._served > 0 and not self._clients

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            log.warning("a client could not be taken: %s", error)
            time.sleep(_AFTER_TROUBLE)  # no descriptors are left: they do not come back at once
            return
        sock.setblocking(True)
        line = Line(sock, _client_name(address))
        thread = threading.Thread(target=self._serve, args=[line], name=line.name, daemon=True)
        with self._lock:
            if len(self._clients) >= self._limits.clients:
                log.warning("%s: turned away, %d are here", line.name, len(self._clients))
                line.close()
                return
            self._clients[line] = thread
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("%s: %s", line.name, error)
            self._forget(line)

    def _serve(self, line: Line) -> None:
        """Serve one client; whatever it does ends at most its own connection."""
        try:
            chosen: Chosen = line.run(
                admit(self._offer), self._tls, Deadline.after(self._limits.handshake)
            )
            self._count()
            line.set_timeout(0)  # a guest may be silent for days, or stopped while it is read to
            self._session(line, chosen).run()
        except Hangup:
            pass
        except (ProtocolError, Timeout) as error:
            log.info("%s: %s", line.name, error)
        except WirtError:
            log.exception("%s", line.name)
        finally:
            self._forget(line)

    def _session(self, line: Line, chosen: Chosen) -> Session:
        export = self._offer.find(chosen.name)
        if export is None:
            raise ProtocolError("the export is gone")
        return Session(line, export, structured=chosen.structured, contexts=chosen.contexts)

    def _count(self) -> None:
        with self._lock:
            self._served += 1

    def _forget(self, line: Line) -> None:
        with self._lock:
            line.close()
            self._clients.pop(line, None)
            self._wake()

    def _end(self) -> None:
        """Cut off the clients, wait for what is being done for them, and flush."""
        with self._lock:
            left = dict(self._clients)
            for line in left:
                line.shut_down()
        for thread in left.values():
            thread.join()
        with self._lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1
        for export in self._exports:
            export.flush()


def _client_name(address: object) -> str:
    if isinstance(address, tuple):
        return f"client {address[0]}:{address[1]}"
    return "a client"
