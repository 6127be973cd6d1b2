"""NBD messages, without I/O: bytes in, values out, and back.

Specification: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md (fixed
newstyle negotiation, structured replies, block status). All numbers are big endian.

*Handshake*::

    server  NBDMAGIC IHAVEOPT, u16 flags
    client  u32 flags
    client  IHAVEOPT, u32 option, u32 length, data             … until GO or EXPORT_NAME
    server  OPTION_REPLY magic, u32 option, u32 type, u32 length, data

*Transmission*::

    client  u32 magic, u16 flags, u16 command, u64 cookie, u64 offset, u32 length, data of WRITE
    server  u32 magic, u32 error, u64 cookie, data of READ     a simple reply, or chunks:
    server  u32 magic, u16 flags, u16 type, u64 cookie, u32 length, payload

Whatever bytes are parsed, the outcome is a value or ProtocolError, nothing else.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from wirt.errors import ProtocolError

DEFAULT_PORT = 10809
MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

MAX_STRING = 4096
"""Of an export name, a description or a context's name, by the specification."""
MAX_OPTION = 64 << 10
"""Bytes of one option, or of one reply to it; ours are far smaller."""
MAX_REQUEST = 32 << 20
"""Bytes that one request may read or write: what qemu-nbd takes too."""
MAX_STATUS = 128 << 10
"""Descriptors in one block status reply."""

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT_NAME_REPLY = struct.Struct(">QH")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
REPLY_START = struct.Struct(">I")
OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCKS = struct.Struct(">HIII")
_CHUNK_ERROR = struct.Struct(">IH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

RESERVED_ZEROES = 124
"""Behind the answer to EXPORT_NAME, unless both sides agreed to leave them out."""


class HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Types of replies to options; errors have the highest bit set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_BLOCK_SIZE_REQD = 1 << 31 | 8
    ERR_TOO_BIG = 1 << 31 | 9


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """What a server says of an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class ChunkType(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


CHUNK_DONE = 1
CHUNK_IS_ERROR = 1 << 15

STATE_HOLE = 1
STATE_ZERO = 2
STATE_DIRTY = 1
BASE_ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

ERRORS = frozenset({
    errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW,
    errno.ENOTSUP, errno.ESHUTDOWN,
})  # fmt: skip
"""Those that the protocol knows; their numbers are Linux's."""


class BlockSizes(NamedTuple):
    minimum: int = 1
    preferred: int = 4096
    maximum: int = MAX_REQUEST


class Request(NamedTuple):
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Chunk(NamedTuple):
    """The header of a structured reply; ``length`` bytes follow."""

    flags: int
    type: int
    cookie: int
    length: int

    @property
    def is_done(self) -> bool:
        return bool(self.flags & CHUNK_DONE)

    @property
    def is_error(self) -> bool:
        return bool(self.type & CHUNK_IS_ERROR)


class GoRequest(NamedTuple):
    """The data of GO and INFO."""

    name: str
    infos: tuple[int, ...]


class ContextRequest(NamedTuple):
    """The data of SET_META_CONTEXT and LIST_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


class _Fields:
    """Reads one message from its start to its end; whatever is short is a ProtocolError."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = bytes(data)
        self._what = what
        self._at = 0

    def take(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise ProtocolError(f"{self._what} ends too early")
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self, layout: struct.Struct) -> int:
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def string(self) -> str:
        """A string after its length."""
        return text(self.take(self.number(_U32)), self._what)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError(f"{self._what} has bytes behind its end")


def text(data: bytes, what: str) -> str:
    """Return a string of the protocol. Raises ProtocolError if it is too long or not UTF-8."""
    if len(data) > MAX_STRING or b"\0" in data:
        raise ProtocolError(f"{what} holds no proper string")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} holds a string that is not UTF-8") from None


def _string(value: str) -> bytes:
    data = value.encode()
    return _U32.pack(len(data)) + data


# Handshake


def parse_greeting(data: bytes) -> int:
    """Return the server's flags. Raises ProtocolError, also for the old kind of server."""
    magic, kind, flags = GREETING.unpack(data)
    if magic != MAGIC:
        raise ProtocolError("this is no NBD server", hint="check host and port")
    if kind != OPTION_MAGIC or not flags & HandshakeFlag.FIXED_NEWSTYLE:
        raise ProtocolError(
            "the NBD server only speaks the protocol of before 2013",
            hint="serve the disk with a newer server",
        )
    return int(flags)


def encode_greeting() -> bytes:
    flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    return GREETING.pack(MAGIC, OPTION_MAGIC, flags)


def encode_option(option: int, data: bytes = b"") -> bytes:
    return OPTION.pack(OPTION_MAGIC, option, len(data)) + data


def parse_option(data: bytes) -> tuple[int, int]:
    """Return option and length of its data. Raises ProtocolError."""
    magic, option, length = OPTION.unpack(data)
    if magic != OPTION_MAGIC:
        raise ProtocolError("the NBD client sent what is no option")
    if length > MAX_OPTION:
        raise ProtocolError(f"the NBD client sent an option of {length} bytes")
    return option, length


def encode_reply(option: int, kind: Reply, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def parse_reply(data: bytes, option: int) -> tuple[int, int]:
    """Return type and length of a reply to ``option``. Raises ProtocolError."""
    magic, answered, kind, length = OPTION_REPLY.unpack(data)
    if magic != OPTION_REPLY_MAGIC or answered != option:
        raise ProtocolError("the NBD server sent what is no answer")
    if length > MAX_OPTION:
        raise ProtocolError(f"the NBD server sent an answer of {length} bytes")
    return kind, length


def encode_go(name: str, infos: Sequence[int]) -> bytes:
    wanted = b"".join(_U16.pack(info) for info in infos)
    return _string(name) + _U16.pack(len(infos)) + wanted


def parse_go(data: bytes) -> GoRequest:
    fields = _Fields(data, "the NBD client's choice of an export")
    name = fields.string()
    infos = tuple(fields.number(_U16) for _ in range(fields.number(_U16)))
    fields.end()
    return GoRequest(name, infos)


def encode_contexts(name: str, queries: Sequence[str]) -> bytes:
    return _string(name) + _U32.pack(len(queries)) + b"".join(map(_string, queries))


def parse_contexts(data: bytes) -> ContextRequest:
    fields = _Fields(data, "the NBD client's list of contexts")
    name, count = fields.string(), fields.number(_U32)
    if count > len(data) // _U32.size:
        raise ProtocolError("the NBD client's list of contexts ends too early")
    queries = tuple(fields.string() for _ in range(count))
    fields.end()
    return ContextRequest(name, queries)


def encode_context(number: int, name: str) -> bytes:
    return _U32.pack(number) + name.encode()


def parse_context(data: bytes) -> tuple[int, str]:
    fields = _Fields(data, "the NBD server's context")
    return fields.number(_U32), text(fields.rest(), "the NBD server's context")


def encode_server(name: str, description: str = "") -> bytes:
    return _string(name) + description.encode()


def parse_server(data: bytes) -> tuple[str, str]:
    """Return name and description of one export in a list."""
    fields = _Fields(data, "the NBD server's list of exports")
    return fields.string(), text(fields.rest(), "the NBD server's list of exports")


def encode_info_export(size: int, flags: int) -> bytes:
    return _INFO_EXPORT.pack(Info.EXPORT, size, flags)


def encode_info_blocks(sizes: BlockSizes) -> bytes:
    return _INFO_BLOCKS.pack(Info.BLOCK_SIZE, *sizes)


def encode_info_text(kind: Info, value: str) -> bytes:
    return _U16.pack(kind) + value.encode()


def parse_info_kind(data: bytes) -> int:
    return _Fields(data, "the NBD server's information").number(_U16)


def parse_info_export(data: bytes) -> tuple[int, int]:
    """Return size and flags of the export. Raises ProtocolError."""
    if len(data) != _INFO_EXPORT.size:
        raise ProtocolError("the NBD server describes its export in a way that we do not know")
    _, size, flags = _INFO_EXPORT.unpack(data)
    return checked_size(size), flags


def checked_size(size: int) -> int:
    """Return ``size`` if a disk can have it. Raises ProtocolError."""
    if size >> 63:
        raise ProtocolError(f"the NBD server says that its export has {size} bytes")
    return size


def parse_info_blocks(data: bytes) -> BlockSizes:
    if len(data) != _INFO_BLOCKS.size:
        raise ProtocolError("the NBD server describes its blocks in a way that we do not know")
    sizes = BlockSizes(*_INFO_BLOCKS.unpack(data)[1:])
    powers = all(size & (size - 1) == 0 and size for size in sizes[:2])
    whole = sizes.maximum == 0xFFFFFFFF or sizes.maximum % max(sizes.minimum, 1) == 0
    if not (powers and sizes.minimum <= min(sizes.preferred, 65536) and whole):
        raise ProtocolError(f"the NBD server has impossible block sizes: {tuple(sizes)}")
    if sizes.maximum < sizes.minimum:
        raise ProtocolError(f"the NBD server has impossible block sizes: {tuple(sizes)}")
    return sizes


# Transmission


def encode_request(request: Request) -> bytes:
    return REQUEST.pack(REQUEST_MAGIC, *request)


def parse_request(data: bytes | bytearray | memoryview) -> Request:
    """Return the request whose header ``data`` is. Raises ProtocolError."""
    magic, *fields = REQUEST.unpack(data)
    if magic != REQUEST_MAGIC:
        raise ProtocolError("the NBD client sent what is no request")
    return Request(*fields)


def encode_simple_reply(cookie: int, error: int = 0) -> bytes:
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def encode_chunk(kind: ChunkType, cookie: int, length: int = 0, *, done: bool = True) -> bytes:
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE if done else 0, kind, cookie, length)


def parse_chunk(data: bytes | bytearray | memoryview) -> Chunk:
    magic, *fields = CHUNK.unpack(data)
    if magic != CHUNK_MAGIC:
        raise ProtocolError("the NBD server sent what is no reply")
    return Chunk(*fields)


def encode_error(cookie: int, error: int, message: str = "") -> bytes:
    """Return a whole chunk that ends the reply with an error."""
    words = message.encode()[:MAX_STRING]
    payload = _CHUNK_ERROR.pack(error, len(words)) + words
    return encode_chunk(ChunkType.ERROR, cookie, len(payload)) + payload


def parse_error(kind: int, payload: bytes) -> tuple[int, str]:
    """Return error number and message of an error chunk. Raises ProtocolError."""
    fields = _Fields(payload, "the NBD server's error")
    error = fields.number(_U32)
    words = fields.take(fields.number(_U16)).decode(errors="replace")
    if kind == ChunkType.ERROR_OFFSET:
        fields.take(OFFSET.size)
    if kind in {ChunkType.ERROR, ChunkType.ERROR_OFFSET}:
        fields.end()
    if not error:
        raise ProtocolError("the NBD server reports an error without a number")
    return error, "".join(c if c.isprintable() else "?" for c in words)


def encode_status(context: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the payload of a block status chunk: (length, state) pairs of one context."""
    numbers = [number for extent in extents for number in extent]
    return struct.pack(f">{1 + len(numbers)}I", context, *numbers)


def parse_status(payload: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Return the context and its (length, state) pairs. Raises ProtocolError."""
    count, rest = divmod(len(payload) - _U32.size, 8)
    if count < 1 or rest:
        raise ProtocolError("the NBD server's block status has no whole descriptors")
    context, *numbers = struct.unpack(f">{1 + 2 * count}I", payload)
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    if any(length == 0 for length, _ in extents):
        raise ProtocolError("the NBD server's block status has an empty descriptor")
    return context, extents
