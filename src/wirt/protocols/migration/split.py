"""QEMU's migration stream, split into the guest's memory and everything else.

The layout (``migration/savevm.c``, ``migration/ram.c``; all numbers big endian)::

    u32 "QEVM", u32 3
    u8 7 configuration: u32 length, name of the machine type
    u8 1 SECTION_START: u32 id, u8 n, name, u32 instance, u32 version, payload, footer
    u8 2 SECTION_PART, u8 3 SECTION_END: u32 id, payload, footer
    u8 4 SECTION_FULL …  the devices, and all that follows
    footer: u8 0x7e, u32 id

Sections have no length; but the only ones that are sent in parts are those of ``ram``, they
come first, and their payload is a list of records up to one that ends it::

    u64 offset | flags, [u8 n, name of the block unless CONTINUE], then by flag
    MEM_SIZE  as many blocks as make up "offset": u8 n, name, u64 length
    ZERO      u8 fill
    PAGE      4096 bytes
    EOS       nothing: the section ends

Pages of one block are taken out, the rest is passed on, so that what passes is again a stream
that QEMU loads, over memory that is there already. From the first full section on everything
passes as it is. Whatever bytes are fed, the outcome is pieces or ProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from wirt.errors import ProtocolError
from wirt.units import MIB

PAGE_SIZE = 4096
MAGIC = b"QEVM\0\0\0\3"

_CONFIGURATION, _START, _PART, _END, _FULL, _COMMAND = 7, 1, 2, 3, 4, 8
_FOOTER = 0x7E
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE_SIZE - 1
_BACKEND = b"ram"
"""Identifier of the memory's backend on wirt's command lines."""

_MOST_BLOCKS = 4096
_MOST_NAME = 1024
_WHOLE_PAGE = 8 + PAGE_SIZE
_WHOLE_ZERO = 8 + 1


class Passed(msgspec.Struct, frozen=True):
    """Bytes of everything else, in order."""

    data: bytes


class Pages(msgspec.Struct, frozen=True):
    """Bytes of the memory from ``offset`` on: whole pages."""

    offset: int
    data: bytes


class Zeroes(msgspec.Struct, frozen=True):
    """Pages that are zero."""

    offset: int
    length: int


Piece = Passed | Pages | Zeroes


class _More(Exception):
    """The buffer ends within something."""


class Splitter:
    """Bytes of a stream to pieces. ``size`` is the length of the memory's block.

    Holds at most one record beyond what it is fed.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = bytearray()
        self._at = 0
        self._state = self._begin
        self._main = b""
        self._block = b""
        self._passed_block = b""
        self._out: list[Piece] = []
        self._rest = False

    def feed(self, data: bytes) -> list[Piece]:
        """Return what can be told by now. Raises ProtocolError."""
        if self.passes():
            return [Passed(data)]
        self._buffer += data
        self._at = 0
        self._out = []
        try:
            while not self.passes():
                mark = self._at
                self._state()
                if self._at == mark and not self.passes():
                    break
        except _More:
            self._at = mark
        del self._buffer[: self._at]
        if self.passes():
            self._out.append(Passed(bytes(self._buffer)))
            self._buffer.clear()
        return list(_joined(self._out))

    def passes(self) -> bool:
        """True once the memory has ended, and everything passes."""
        return self._rest

    def end(self) -> None:
        """Say that the stream has ended. Raises ProtocolError if it may not."""
        if not self.passes():
            raise ProtocolError("the migration stream ends within the memory")

    # Reading: each step takes all of something, or raises _More and takes nothing.

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._buffer):
            raise _More
        data = bytes(self._buffer[self._at : end])
        self._at = end
        return data

    def _number(self, length: int) -> int:
        return int.from_bytes(self._take(length), "big")

    def _name(self) -> bytes:
        return self._take(self._number(1))

    def _begin(self) -> None:
        head = self._take(len(MAGIC))
        if head != MAGIC:
            raise ProtocolError("not a migration stream of a version that is known")
        if self._number(1) != _CONFIGURATION:
            raise ProtocolError("the migration stream does not name its machine type")
        length = self._number(4)
        if length > _MOST_NAME:
            raise ProtocolError("the migration stream's machine type has no end")
        name = self._take(length)
        self._pass(head + bytes([_CONFIGURATION]) + length.to_bytes(4, "big") + name)
        self._state = self._section

    def _section(self) -> None:
        mark = self._at
        kind = self._number(1)
        if kind == _FULL:
            self._at = mark
            self._rest = True
        elif kind == _START:
            self._take(4)
            name = self._name()
            self._take(8)
            if name != b"ram":
                raise ProtocolError(f"the migration stream has a part {name[:40]!r}: unknown")
            self._state = self._record
        elif kind in {_PART, _END}:
            self._take(4)
            self._state = self._record
        elif kind == _COMMAND:
            self._take(2)
            self._take(self._number(2))
        else:
            raise ProtocolError(f"the migration stream has a section of kind {kind}: unknown")
        self._pass(bytes(self._buffer[mark : self._at]))

    def _footer(self) -> None:
        mark = self._at
        if self._number(1) != _FOOTER:
            raise ProtocolError("a part of the migration stream does not end")
        self._take(4)
        self._pass(bytes(self._buffer[mark : self._at]))
        self._state = self._section

    def _record(self) -> None:
        if self._block == self._main != b"" and self._run():
            return
        mark = self._at
        head = self._number(8)
        offset, flags = head & ~_FLAGS, head & _FLAGS
        if flags == _EOS:
            self._pass(bytes(self._buffer[mark : self._at]))
            self._state = self._footer
        elif flags == _MEM_SIZE:
            self._sizes(offset, mark)
        elif flags & ~_CONTINUE in {_ZERO, _PAGE}:
            self._page(offset, flags)
        else:
            raise ProtocolError(f"a record of memory has the flags {flags:#x}: unknown")

    def _sizes(self, total: int, mark: int) -> None:
        main = b""
        for _ in range(_MOST_BLOCKS):
            if total <= 0:
                break
            name, length = self._name(), self._number(8)
            total -= length
            if length == self._size and name.rpartition(b"/")[2] == _BACKEND:
                main = name
        if total or not main:
            raise ProtocolError("the migration stream's memory is not what the machine has")
        self._main = main
        self._pass(bytes(self._buffer[mark : self._at]))

    def _page(self, offset: int, flags: int) -> None:
        block = self._block if flags & _CONTINUE else self._name()
        body = self._take(1 if flags & _ZERO else PAGE_SIZE)
        if not block:
            raise ProtocolError("a record of memory continues nothing")
        self._block = block
        if block != self._main:
            self._pass_page(offset, flags & ~_CONTINUE, block, body)
            return
        self._check(offset, PAGE_SIZE)
        if not flags & _ZERO:
            self._out.append(Pages(offset, body))
        elif body == b"\0":
            self._out.append(Zeroes(offset, PAGE_SIZE))
        else:
            self._out.append(Pages(offset, body * PAGE_SIZE))

    def _pass_page(self, offset: int, flags: int, block: bytes, body: bytes) -> None:
        """Records between two of this block may be gone: say anew whose it is where needed."""
        if block == self._passed_block:
            self._pass((offset | flags | _CONTINUE).to_bytes(8, "big") + body)
        else:
            name = bytes([len(block)]) + block
            self._pass((offset | flags).to_bytes(8, "big") + name + body)
            self._passed_block = block

    def _run(self) -> bool:
        """Take a run of records of following pages at once; True if there was one."""
        for flag, length in ((_PAGE, _WHOLE_PAGE), (_ZERO, _WHOLE_ZERO)):
            count = (len(self._buffer) - self._at) // length
            if count < 2:
                continue
            offset, taken = self._following(flag | _CONTINUE, length, count)
            if not taken:
                continue
            self._check(offset, taken * PAGE_SIZE)
            raw = self._take(taken * length)
            if flag == _ZERO:
                self._out.append(Zeroes(offset, taken * PAGE_SIZE))
            else:
                self._out.append(Pages(offset, _contents(raw, taken, length)))
            return True
        return False

    def _following(self, flags: int, length: int, count: int) -> tuple[int, int]:
        """Return offset and number of the records of one kind that follow one another here."""
        head = int.from_bytes(self._buffer[self._at : self._at + 8], "big")
        if head & _FLAGS != flags:
            return 0, 0
        import numpy as np

        view = np.frombuffer(self._buffer, np.uint8, count * length, self._at)
        rows = view.reshape(count, length)
        heads = np.ascontiguousarray(rows[:, :8]).view(">u8").ravel()
        wanted = head + np.arange(count, dtype=np.uint64) * np.uint64(PAGE_SIZE)
        good = heads == wanted
        if length == _WHOLE_ZERO:
            good &= rows[:, 8] == 0
        del view, rows  # else the buffer could not be cut
        return head & ~_FLAGS, int(count if good.all() else np.argmin(good))

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self._size:
            raise ProtocolError(f"a page lies at {offset:#x}, beyond the memory")

    def _pass(self, data: bytes) -> None:
        if data:
            self._out.append(Passed(data))


def _joined(pieces: list[Piece]) -> Iterator[Piece]:
    """Yield the pieces with neighbours of one kind joined, up to 1 MiB."""
    run: list[bytes] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, Passed) and size < MIB:
            run.append(piece.data)
            size += len(piece.data)
            continue
        if run:
            yield Passed(b"".join(run))
        run, size = [], 0
        yield piece
    if run:
        yield Passed(b"".join(run))


def _contents(raw: bytes | bytearray, count: int, length: int) -> bytes:
    """Return the pages of ``count`` records, without their heads."""
    import numpy as np

    return np.frombuffer(raw, np.uint8).reshape(count, length)[:, 8:].tobytes()
