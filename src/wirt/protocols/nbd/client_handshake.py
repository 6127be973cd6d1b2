"""The client's side of the negotiation, without I/O."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from wirt.errors import CommandRefused, ProtocolError
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.codec import BlockSizes, ExportFlag, HandshakeFlag, Info, Option, Reply
from wirt.protocols.nbd.steps import Handshake, Receive, Send, StartTls

_MAX_REPLIES = 20_000
"""To one option: a server that never comes to an end is none."""
_REASONS = {
    Reply.ERR_UNSUP: "not supported",
    Reply.ERR_POLICY: "forbidden by the server's policy",
    Reply.ERR_INVALID: "not understood",
    Reply.ERR_PLATFORM: "not possible on the server's platform",
    Reply.ERR_TLS_REQD: "the server wants TLS",
    Reply.ERR_UNKNOWN: "there is no such export",
    Reply.ERR_SHUTDOWN: "the server is shutting down",
    Reply.ERR_BLOCK_SIZE_REQD: "the server insists on its block sizes",
    Reply.ERR_TOO_BIG: "too large for the server",
}


class Wish(msgspec.Struct, frozen=True):
    """What a client wants of a server."""

    export: str = ""
    tls: bool = False
    contexts: tuple[str, ...] = (codec.BASE_ALLOCATION,)


class Agreement(msgspec.Struct, frozen=True):
    """What was agreed; sizes in bytes."""

    size: int
    flags: ExportFlag
    structured: bool = False
    blocks: BlockSizes = msgspec.field(default_factory=BlockSizes)
    contexts: tuple[tuple[str, int], ...] = ()
    """Name and number of each context that block status will report."""
    description: str = ""


class ExportEntry(NamedTuple):
    """One line of a server's list."""

    name: str
    description: str


class _Answer(NamedTuple):
    kind: int
    data: bytes


def negotiate(wish: Wish) -> Handshake[Agreement]:
    """Come to the transmission phase. Raises ProtocolError, CommandRefused."""
    flags = yield from _begin(tls=wish.tls)
    structured = (yield from _ask(Option.STRUCTURED_REPLY)) is None
    contexts: tuple[tuple[str, int], ...] = ()
    if structured and wish.contexts:
        contexts = yield from _choose_contexts(wish)
    agreement = yield from _go(wish)
    if agreement is None:
        agreement = yield from _export_name(wish, flags)
    return replace(agreement, structured=structured, contexts=contexts)


def list_exports(*, tls: bool) -> Handshake[list[ExportEntry]]:
    """Ask for the names of all exports. Raises ProtocolError, CommandRefused."""
    yield from _begin(tls=tls)
    yield Send(codec.encode_option(Option.LIST))
    found = []
    answer = yield from _answer(Option.LIST)
    while answer.kind == Reply.SERVER:
        found.append(ExportEntry(*codec.parse_server(answer.data)))
        if len(found) > _MAX_REPLIES:
            raise ProtocolError("the NBD server's list of exports has no end")
        answer = yield from _answer(Option.LIST)
    _require_ack(answer, Option.LIST)
    yield Send(codec.encode_option(Option.ABORT))
    return found


def _begin(*, tls: bool) -> Handshake[int]:
    """Greet each other, and turn TLS on; return the flags that both have."""
    offered = codec.parse_greeting((yield Receive(codec.GREETING.size)))
    flags = offered & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
    yield Send(codec.CLIENT_FLAGS.pack(flags))
    if tls:
        refused = yield from _ask(Option.STARTTLS)
        if refused is not None:
            raise CommandRefused("NBD", refused, f"the server does not speak TLS: {refused}")
        yield StartTls()
    return flags


def _ask(option: Option, data: bytes = b"") -> Handshake[str | None]:
    """Set an option that is answered by ACK; return why it is refused, or None."""
    yield Send(codec.encode_option(option, data))
    answer = yield from _answer(option)
    if answer.kind == Reply.ERR_TLS_REQD:
        raise _refusal(answer)
    if answer.kind & 1 << 31:
        return _reason(answer)
    _require_ack(answer, option)
    return None


def _answer(option: Option) -> Handshake[_Answer]:
    kind, length = codec.parse_reply((yield Receive(codec.OPTION_REPLY.size)), option)
    data = (yield Receive(length)) if length else b""
    return _Answer(kind, data)


def _require_ack(answer: _Answer, option: Option) -> None:
    if answer.kind & 1 << 31:
        raise _refusal(answer)
    if answer.kind != Reply.ACK:
        raise ProtocolError(f"the NBD server answers {option.name} with {answer.kind:#x}")


def _refusal(answer: _Answer) -> CommandRefused:
    known = {reply.value: reply.name for reply in Reply}
    error = CommandRefused("NBD", known.get(answer.kind, hex(answer.kind)), _reason(answer))
    if answer.kind == Reply.ERR_TLS_REQD:
        error.hint = "use nbds:// and name the certificates: ?tls-certificates=DIRECTORY"
    elif answer.kind == Reply.ERR_UNKNOWN:
        error.hint = "see what there is: nbdinfo --list URI"
    return error


def _reason(answer: _Answer) -> str:
    reason = next((words for kind, words in _REASONS.items() if kind == answer.kind), "refused")
    said = answer.data[:200].decode(errors="replace")
    said = "".join(c if c.isprintable() else "?" for c in said)
    return f"{reason} ({said})" if said else reason


def _choose_contexts(wish: Wish) -> Handshake[tuple[tuple[str, int], ...]]:
    option = Option.SET_META_CONTEXT
    yield Send(codec.encode_option(option, codec.encode_contexts(wish.export, wish.contexts)))
    found: list[tuple[str, int]] = []
    answer = yield from _answer(option)
    while answer.kind == Reply.META_CONTEXT:
        number, name = codec.parse_context(answer.data)
        found.append((name, number))
        if len(found) > len(wish.contexts):
            raise ProtocolError("the NBD server offers contexts that nobody asked for")
        answer = yield from _answer(option)
    if answer.kind & 1 << 31:
        return ()
    _require_ack(answer, option)
    return tuple(found)


def _go(wish: Wish) -> Handshake[Agreement | None]:
    """Choose the export; None if the server only knows the older way."""
    infos = (Info.BLOCK_SIZE, Info.DESCRIPTION)
    yield Send(codec.encode_option(Option.GO, codec.encode_go(wish.export, infos)))
    export: tuple[int, int] | None = None
    blocks, description = BlockSizes(), ""
    for _ in range(_MAX_REPLIES):
        answer = yield from _answer(Option.GO)
        if answer.kind != Reply.INFO:
            break
        kind = codec.parse_info_kind(answer.data)
        if kind == Info.EXPORT:
            export = codec.parse_info_export(answer.data)
        elif kind == Info.BLOCK_SIZE:
            blocks = codec.parse_info_blocks(answer.data)
        elif kind == Info.DESCRIPTION:
            description = codec.text(answer.data[2:], "the NBD server's description")
    else:
        raise ProtocolError("the NBD server's information has no end")
    if answer.kind in {Reply.ERR_UNSUP, Reply.ERR_POLICY} and export is None:
        return None
    _require_ack(answer, Option.GO)
    if export is None:
        raise ProtocolError("the NBD server does not tell the size of its export")
    return Agreement(export[0], ExportFlag(export[1]), blocks=blocks, description=description)


def _export_name(wish: Wish, flags: int) -> Handshake[Agreement]:
    """Choose the export as before 2016: a server that lacks it hangs up."""
    yield Send(codec.encode_option(Option.EXPORT_NAME, wish.export.encode()))
    data = yield Receive(codec.EXPORT_NAME_REPLY.size)
    size, export_flags = codec.EXPORT_NAME_REPLY.unpack(data)
    if not flags & HandshakeFlag.NO_ZEROES:
        yield Receive(codec.RESERVED_ZEROES)
    return Agreement(codec.checked_size(size), ExportFlag(export_flags))
