"""One client after the handshake: its requests, one after the other, and their replies.

What a client sends is received before anything is locked, and what it is sent is sent after
everything has been unlocked: a client that stops in the middle holds up nobody.
"""

from __future__ import annotations

import errno
import logging

from wirt.errors import ImageAccessDenied, ImageError, ImageNoSpace, ProtocolError
from wirt.image.nbd_server.export import Export
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.codec import ChunkType, Command, CommandFlag, Request
from wirt.protocols.nbd.line import Line

log = logging.getLogger(__name__)

_FLAGS: dict[int, int] = {  # plain numbers: the complement of a flag lacks unknown bits
    Command.READ: CommandFlag.DF | CommandFlag.FUA,
    Command.WRITE: CommandFlag.FUA,
    Command.FLUSH: CommandFlag.FUA,
    Command.TRIM: CommandFlag.FUA,
    Command.CACHE: CommandFlag.FUA,
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE,
    Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
}
_CHANGES = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}
_KEPT = 4 << 20
"""A buffer larger than this is given back after its request."""


class Session:
    """Serves one negotiated connection until it ends."""

    def __init__(
        self, line: Line, export: Export, *, structured: bool, contexts: dict[int, str]
    ) -> None:
        self._line = line
        self._export = export
        self._structured = structured
        self._contexts = contexts
        self._header = memoryview(bytearray(codec.REQUEST.size))
        self._buffer = bytearray()

    def run(self) -> None:
        """Answer until the client says goodbye. Raises PeerClosed, ProtocolError."""
        while True:
            self._line.receive_into(self._header)
            request = codec.parse_request(self._header)
            if request.command == Command.DISC:
                return
            self._serve(request)
            if len(self._buffer) > _KEPT:
                self._buffer = bytearray()

    def _serve(self, request: Request) -> None:
        payload = self._receive_payload(request)
        wrong = self._what_is_wrong(request)
        if wrong is not None:
            self._refuse(request, *wrong)
            return
        try:
            if request.command == Command.READ:
                self._read(request)
            elif request.command == Command.BLOCK_STATUS:
                self._block_status(request)
            else:
                self._change(request, payload)
                self._acknowledge(request)
        except ImageError as error:
            log.warning("%s: %s", self._line.name, error)
            self._refuse(request, _number(error), error.message)  # no path: it is the host's
        except MemoryError:
            self._refuse(request, errno.ENOMEM, "no memory")

    def _receive_payload(self, request: Request) -> memoryview | None:
        if request.command != Command.WRITE:
            return None
        if request.length > codec.MAX_REQUEST:
            raise ProtocolError(f"the NBD client wants to write {request.length} bytes at once")
        view = self._view(request.length)
        self._line.receive_into(view)
        return view

    def _view(self, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]

    def _what_is_wrong(self, request: Request) -> tuple[int, str] | None:
        """Return why the request cannot be done, as errno and words."""
        command = request.command
        if command not in _FLAGS:
            return errno.EINVAL, f"there is no command {command}"
        if request.flags & ~int(_FLAGS[command]):
            return errno.EINVAL, f"command {command} has no flags {request.flags:#x}"
        if command in _CHANGES and self._export.read_only:
            return errno.EPERM, "the export is read-only"
        if command == Command.FLUSH:
            return None
        if request.offset + request.length > self._export.size():
            beyond = errno.ENOSPC if command in _CHANGES else errno.EINVAL
            return beyond, "the request ends behind the end of the disk"
        if command == Command.READ and request.length > codec.MAX_REQUEST:
            return errno.EOVERFLOW, f"at most {codec.MAX_REQUEST} bytes are read at once"
        if command == Command.BLOCK_STATUS and not (request.length and self._contexts):
            return errno.EINVAL, "no context was chosen, or no bytes"
        return None

    # Replies

    def _read(self, request: Request) -> None:
        place = self._place(request)
        if place is not None:
            self._line.send_file(self._data_header(request), *place, request.length)
            return
        view = self._view(request.length)
        self._export.read_into(request.offset, view)
        self._line.send(self._data_header(request), view)

    def _place(self, request: Request) -> tuple[int, int] | None:
        """Return where the kernel finds the bytes, if it can send them by itself."""
        if self._line.is_tls or not request.length:
            return None  # OpenSSL enciphers in this process
        return self._export.place(request.offset, request.length)

    def _data_header(self, request: Request) -> bytes:
        """Return what stands in front of the data of a whole read."""
        if not self._structured:
            return codec.encode_simple_reply(request.cookie)
        if not request.length:
            return codec.encode_chunk(ChunkType.NONE, request.cookie)
        length = request.length + codec.OFFSET.size
        chunk = codec.encode_chunk(ChunkType.OFFSET_DATA, request.cookie, length)
        return chunk + codec.OFFSET.pack(request.offset)

    def _block_status(self, request: Request) -> None:
        only_one = bool(request.flags & CommandFlag.REQ_ONE)
        payloads = [
            codec.encode_status(
                number,
                self._export.status(name, request.offset, request.length, only_one=only_one),
            )
            for number, name in self._contexts.items()
        ]
        parts = []
        for index, payload in enumerate(payloads, 1):
            done = index == len(payloads)
            kind = ChunkType.BLOCK_STATUS
            parts.append(codec.encode_chunk(kind, request.cookie, len(payload), done=done))
            parts.append(payload)
        self._line.send(b"".join(parts))

    def _change(self, request: Request, payload: memoryview | None) -> None:
        export, command = self._export, request.command
        if payload is not None:
            export.write(request.offset, payload)
        elif command == Command.WRITE_ZEROES:
            unmap = not request.flags & CommandFlag.NO_HOLE
            export.zero(request.offset, request.length, unmap=unmap)
        elif command == Command.TRIM:
            export.discard(request.offset, request.length)
        elif command == Command.CACHE:
            export.cache(request.offset, min(request.length, codec.MAX_REQUEST))
        if command == Command.FLUSH or (command in _CHANGES and request.flags & CommandFlag.FUA):
            export.flush()

    def _acknowledge(self, request: Request) -> None:
        self._line.send(codec.encode_simple_reply(request.cookie))

    def _refuse(self, request: Request, error: int, words: str) -> None:
        if self._structured:
            self._line.send(codec.encode_error(request.cookie, error, words))
        else:
            self._line.send(codec.encode_simple_reply(request.cookie, error))


def _number(error: ImageError) -> int:
    if isinstance(error, ImageNoSpace):
        return errno.ENOSPC
    return errno.EPERM if isinstance(error, ImageAccessDenied) else errno.EIO
