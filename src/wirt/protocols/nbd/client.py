"""One connection to an NBD server that many threads use at once.

Each request is sent at once; whichever waiting thread comes first receives the replies, also
those of the others, until its own is there. Replies may come in any order.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading
import time
from collections.abc import Iterator

import msgspec

from wirt.errors import CommandRefused, PeerClosed, ProtocolError, Timeout, WirtError
from wirt.protocols.deadline import Deadline
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.client_handshake import Agreement, Wish, negotiate
from wirt.protocols.nbd.codec import Chunk, ChunkType, Command, Request
from wirt.protocols.nbd.line import Line, Tls

_MAX_ERROR = 8192
_SMALLEST_CHUNK = 512
"""A server that cuts its data finer than this, on average, is refused."""


class _Pending(msgspec.Struct):
    """A request that was sent, and what of its reply has come."""

    request: Request
    view: memoryview | None = None
    done: bool = False
    error: WirtError | None = None
    runs: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """(start, end) of the data that has come, in the view."""
    extents: list[tuple[int, int]] | None = None


class Connection:
    """A negotiated connection. ``timeout`` bounds each request, in seconds.

    Raises PeerClosed, Timeout and ProtocolError, after which it is of no use any more, and
    CommandRefused with the name of an errno, after which it is.
    """

    def __init__(self, line: Line, wish: Wish, *, timeout: float, tls: Tls | None = None) -> None:
        self._line = line
        self._timeout = timeout
        self.agreement: Agreement = line.run(negotiate(wish), tls, Deadline.after(timeout))
        line.set_timeout(timeout)
        self._contexts = dict(self.agreement.contexts)
        self._cookies = itertools.count(1)
        self._waiting: dict[int, _Pending] = {}
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._receiving = False
        self._failure: WirtError | None = None
        self._users = 0
        # OpenSSL's connections cannot be read and written at the same time.
        self._alone = threading.Lock() if line.is_tls else contextlib.nullcontext()

    def set_timeout(self, seconds: float) -> None:
        """Bound each later request; the handshake may have had another bound."""
        self._timeout = seconds
        self._line.set_timeout(seconds)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def is_broken(self) -> bool:
        return self._failure is not None

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on."""
        self._call(Command.READ, 0, offset, len(view), view=view)

    def write(self, offset: int, data: memoryview, *, flags: int = 0) -> None:
        self._call(Command.WRITE, flags, offset, len(data), payload=data)

    def command(
        self, command: Command, offset: int = 0, length: int = 0, *, flags: int = 0
    ) -> None:
        """Do what needs no data: FLUSH, TRIM, CACHE, WRITE_ZEROES."""
        self._call(command, flags, offset, length)

    def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return (length, state) runs from ``offset`` on: at least one, maybe not all."""
        pending = self._call(Command.BLOCK_STATUS, 0, offset, length)
        if not pending.extents:
            raise self._fail(ProtocolError("the NBD server answers without a block status"))
        return pending.extents

    def _call(
        self,
        command: Command,
        flags: int,
        offset: int,
        length: int,
        *,
        view: memoryview | None = None,
        payload: memoryview | None = None,
    ) -> _Pending:
        request = Request(flags, command, next(self._cookies), offset, length)
        pending = _Pending(request, view)
        with self._used(), self._alone:
            self._send(pending, payload)
            self._wait(pending)
        if pending.error is not None:
            raise pending.error
        return pending

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Close a broken connection, but not under the feet of a thread that still uses it."""
        with self._turn:
            self._users += 1
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                if self._failure is not None and not self._users:
                    self._line.close()

    def _send(self, pending: _Pending, payload: memoryview | None) -> None:
        header = codec.encode_request(pending.request)
        with self._sending:
            with self._turn:
                if self._failure is not None:
                    raise self._failure
                self._waiting[pending.request.cookie] = pending
            try:
                if payload is None:
                    self._line.send(header)
                else:
                    self._line.send(header, payload)
            except WirtError as error:
                # Half a request may have gone out: nothing that follows would be understood.
                raise self._fail(error) from None

    def _wait(self, pending: _Pending) -> None:
        deadline = time.monotonic() + self._timeout
        while self._takes_turn(pending):
            try:
                self._receive_reply()
                if not pending.done and time.monotonic() > deadline:
                    raise Timeout(f"{self._line.name}: the request was not answered in time")
            except WirtError as error:
                self._fail(error)
            except BaseException:  # in the middle of a reply: what follows makes no sense
                self._fail(PeerClosed(f"{self._line.name}: it was interrupted"))
                raise
            finally:
                with self._turn:
                    self._receiving = False
                    self._turn.notify_all()

    def _takes_turn(self, pending: _Pending) -> bool:
        """Wait until the reply is there (False), or it is on this thread to receive."""
        with self._turn:
            self._turn.wait_for(lambda: pending.done or not self._receiving)
            self._receiving = self._receiving or not pending.done
            return not pending.done

    def _fail(self, error: WirtError) -> WirtError:
        """Give up the connection: every request of it has failed."""
        with self._turn:
            self._failure = self._failure or error
            for pending in self._waiting.values():
                pending.error = pending.error or self._failure
                pending.done = True
            self._waiting.clear()
            self._turn.notify_all()
        self._line.shut_down()
        return self._failure

    # Replies

    def _receive_reply(self) -> None:
        head = bytearray(codec.CHUNK.size)
        first = memoryview(head)[: codec.SIMPLE_REPLY.size]
        self._line.receive_into(first)
        (magic,) = codec.REPLY_START.unpack_from(head)
        if magic == codec.SIMPLE_REPLY_MAGIC:
            _, error, cookie = codec.SIMPLE_REPLY.unpack(first)
            self._simple_reply(self._pending(cookie), error)
            return
        self._line.receive_into(memoryview(head)[codec.SIMPLE_REPLY.size :])
        chunk = codec.parse_chunk(head)
        if not self.agreement.structured:
            raise ProtocolError("the NBD server sends chunks that nobody asked for")
        pending = self._pending(chunk.cookie)
        self._receive_chunk(pending, chunk)
        if chunk.is_done:
            self._finish(pending)

    def _pending(self, cookie: int) -> _Pending:
        pending = self._waiting.get(cookie)
        if pending is None:
            raise ProtocolError("the NBD server answers what nobody asked")
        return pending

    def _simple_reply(self, pending: _Pending, error: int) -> None:
        if error:
            pending.error = _refused(pending, error, "")
        elif pending.view is not None:
            if self.agreement.structured:
                raise ProtocolError("the NBD server sends data in a simple reply")
            self._line.receive_into(pending.view)
            pending.runs.append((0, len(pending.view)))
        self._finish(pending)

    def _receive_chunk(self, pending: _Pending, chunk: Chunk) -> None:
        if chunk.type == ChunkType.OFFSET_DATA:
            self._receive_data(pending, chunk.length)
        elif chunk.type == ChunkType.OFFSET_HOLE and chunk.length == codec.HOLE.size:
            offset, length = codec.HOLE.unpack(self._line.receive(chunk.length))
            self._place(pending, offset, length)[:] = bytes(length)
        elif chunk.type == ChunkType.BLOCK_STATUS:
            self._receive_status(pending, chunk.length)
        elif chunk.is_error and chunk.length <= _MAX_ERROR:
            error, words = codec.parse_error(chunk.type, self._line.receive(chunk.length))
            pending.error = pending.error or _refused(pending, error, words)
        elif chunk.type != ChunkType.NONE or chunk.length or not chunk.is_done:
            raise ProtocolError(
                f"the NBD server sends a chunk of type {chunk.type} and {chunk.length} bytes"
            )

    def _receive_data(self, pending: _Pending, length: int) -> None:
        if pending.view is None or not 8 < length <= 8 + len(pending.view):
            raise ProtocolError("the NBD server sends data that nobody asked for")
        place = bytearray(codec.OFFSET.size)
        length -= len(place)
        if length == len(pending.view):
            # All in one chunk, as nearly always: it can only belong to the start.
            view = self._place(pending, pending.request.offset, length)
            self._line.receive_parts(memoryview(place), view)
            if codec.OFFSET.unpack(place)[0] != pending.request.offset:
                raise ProtocolError("the NBD server sends data that nobody asked for")
            return
        self._line.receive_into(memoryview(place))
        (offset,) = codec.OFFSET.unpack(place)
        self._line.receive_into(self._place(pending, offset, length))

    def _place(self, pending: _Pending, offset: int, length: int) -> memoryview:
        """Return where the bytes belong. Raises ProtocolError if nobody asked for them."""
        view, start = pending.view, offset - pending.request.offset
        if view is None or start < 0 or not 0 < length <= len(view) - start:
            raise ProtocolError("the NBD server sends data that nobody asked for")
        pending.runs.append((start, start + length))
        if len(pending.runs) > 8 + len(view) // _SMALLEST_CHUNK:
            raise ProtocolError("the NBD server cuts its data into crumbs")
        return view[start : start + length]

    def _receive_status(self, pending: _Pending, length: int) -> None:
        if pending.request.command != Command.BLOCK_STATUS or length > 4 + 8 * codec.MAX_STATUS:
            raise ProtocolError("the NBD server sends a block status that nobody asked for")
        context, extents = codec.parse_status(self._line.receive(length))
        if context == self._contexts.get(codec.BASE_ALLOCATION):
            pending.extents = extents

    def _finish(self, pending: _Pending) -> None:
        """Let the thread that waits for this reply go on."""
        if pending.view is not None and pending.error is None:
            _require_whole(pending.runs, len(pending.view))
        with self._turn:
            self._waiting.pop(pending.request.cookie, None)
            pending.done = True

    def close(self) -> None:
        """Say goodbye and close; requests of other threads fail."""
        gone = PeerClosed(f"{self._line.name}: the connection was closed here")
        with self._used():
            with contextlib.suppress(WirtError):
                self._send(_Pending(Request(0, Command.DISC, 0, 0, 0)), None)
            self._fail(gone)


def _require_whole(runs: list[tuple[int, int]], length: int) -> None:
    """Raise ProtocolError unless the runs cover everything exactly once."""
    at = 0
    for start, end in sorted(runs):
        if start != at:
            raise ProtocolError("the NBD server's data have gaps, or overlap")
        at = end
    if at != length:
        raise ProtocolError("the NBD server sent less than was asked for")


def _refused(pending: _Pending, error: int, words: str) -> CommandRefused:
    name = errno.errorcode.get(error, str(error)) if error in codec.ERRORS else "EINVAL"
    what = Command(pending.request.command).name.lower()
    return CommandRefused(
        f"NBD {what}", name, f"the server says {': '.join(filter(None, [name, words]))}"
    )
