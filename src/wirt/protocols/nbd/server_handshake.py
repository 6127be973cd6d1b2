"""The server's side of the negotiation, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from wirt.errors import ProtocolError
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.codec import BlockSizes, HandshakeFlag, Info, Option, Reply
from wirt.protocols.nbd.steps import Handshake, Receive, Send, StartTls

T = TypeVar("T")

_MAX_OPTIONS = 1000
"""From one client: enough for any, and an end for one that only talks."""


class Offered(Protocol):
    """What a handshake must know of an export. Each call may find another size."""

    @property
    def description(self) -> str: ...

    @property
    def contexts(self) -> Sequence[str]:
        """What block status can report of it."""

    @property
    def blocks(self) -> BlockSizes: ...

    def size(self) -> int: ...

    def flags(self) -> int:
        """``codec.ExportFlag``."""


class Offer(Protocol):
    """What a server has, and who may see it."""

    @property
    def tls_required(self) -> bool: ...

    def names(self) -> Sequence[str]: ...

    def find(self, name: str) -> Offered | None:
        """Return the export; the empty name means the default one."""


class Chosen(msgspec.Struct):
    """What a client has chosen."""

    name: str
    structured: bool = False
    contexts: dict[int, str] = msgspec.field(default_factory=dict)
    """Names of the contexts that block status reports, by their numbers."""


class Hangup(ProtocolError):
    """The client ended the conversation before it chose an export."""


def admit(offer: Offer) -> Handshake[Chosen]:
    """Negotiate with one client until it has chosen. Raises ProtocolError, Hangup."""
    return (yield from _Admission(offer).run())


class _Admission:
    """What one client has asked for so far."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._tls = False
        self._structured = False
        self._no_zeroes = False
        self._context_export = ""
        self._contexts: tuple[str, ...] = ()

    def run(self) -> Handshake[Chosen]:
        yield Send(codec.encode_greeting())
        (flags,) = codec.CLIENT_FLAGS.unpack((yield Receive(codec.CLIENT_FLAGS.size)))
        if flags & ~int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES):
            raise ProtocolError("the NBD client wants what nobody offered")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        for _ in range(_MAX_OPTIONS):
            option, length = codec.parse_option((yield Receive(codec.OPTION.size)))
            data = (yield Receive(length)) if length else b""
            chosen = yield from self._handle(option, data)
            if chosen is not None:
                return chosen
        raise ProtocolError("the NBD client asks without end")

    def _handle(self, option: int, data: bytes) -> Handshake[Chosen | None]:
        if option == Option.ABORT:
            yield Send(codec.encode_reply(option, Reply.ACK))
            raise Hangup("the NBD client chose nothing")
        if option == Option.STARTTLS:
            yield from self._start_tls(data)
        elif self._offer.tls_required and not self._tls:
            if option == Option.EXPORT_NAME:  # there is no answer to it but the export itself
                raise ProtocolError("the NBD client does without TLS")
            yield Send(codec.encode_reply(option, Reply.ERR_TLS_REQD, b"use TLS"))
        elif option == Option.EXPORT_NAME:
            return (yield from self._export_name(data))
        elif option in {Option.GO, Option.INFO}:
            return (yield from self._go(option, data))
        elif option == Option.LIST:
            yield from self._list(data)
        elif option == Option.STRUCTURED_REPLY:
            yield from self._set_structured(data)
        elif option in {Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT}:
            yield from self._set_contexts(option, data)
        else:
            yield Send(codec.encode_reply(option, Reply.ERR_UNSUP))
        return None

    def _start_tls(self, data: bytes) -> Handshake[None]:
        if data or self._tls:
            yield Send(codec.encode_reply(Option.STARTTLS, Reply.ERR_INVALID))
        elif not self._offer.tls_required:
            yield Send(codec.encode_reply(Option.STARTTLS, Reply.ERR_POLICY, b"no TLS here"))
        else:
            yield Send(codec.encode_reply(Option.STARTTLS, Reply.ACK))
            yield StartTls()
            # What was said in the clear may have been said by somebody else.
            self._tls, self._structured, self._contexts = True, False, ()

    def _set_structured(self, data: bytes) -> Handshake[None]:
        if data or self._structured:
            yield Send(codec.encode_reply(Option.STRUCTURED_REPLY, Reply.ERR_INVALID))
            return
        self._structured = True
        yield Send(codec.encode_reply(Option.STRUCTURED_REPLY, Reply.ACK))

    def _list(self, data: bytes) -> Handshake[None]:
        if data:
            yield Send(codec.encode_reply(Option.LIST, Reply.ERR_INVALID))
            return
        for name in self._offer.names():
            export = self._offer.find(name)
            entry = codec.encode_server(name, export.description if export else "")
            yield Send(codec.encode_reply(Option.LIST, Reply.SERVER, entry))
        yield Send(codec.encode_reply(Option.LIST, Reply.ACK))

    def _set_contexts(self, option: int, data: bytes) -> Handshake[None]:
        wanted = _parsed(codec.parse_contexts, data)
        if wanted is None or not self._structured:
            yield Send(codec.encode_reply(option, Reply.ERR_INVALID))
            return
        export = self._offer.find(wanted.name)
        if export is None:
            yield Send(codec.encode_reply(option, Reply.ERR_UNKNOWN))
            return
        setting = option == Option.SET_META_CONTEXT
        found = _matching(export.contexts, wanted.queries, listing=not setting)
        if setting:
            self._context_export, self._contexts = wanted.name, found
        for number, name in enumerate(found):
            context = codec.encode_context(number if setting else 0, name)
            yield Send(codec.encode_reply(option, Reply.META_CONTEXT, context))
        yield Send(codec.encode_reply(option, Reply.ACK))

    def _go(self, option: int, data: bytes) -> Handshake[Chosen | None]:
        wanted = _parsed(codec.parse_go, data)
        if wanted is None:
            yield Send(codec.encode_reply(option, Reply.ERR_INVALID))
            return None
        export = self._offer.find(wanted.name)
        if export is None:
            yield Send(codec.encode_reply(option, Reply.ERR_UNKNOWN))
            return None
        infos = [
            codec.encode_info_export(export.size(), export.flags()),
            codec.encode_info_blocks(export.blocks),
        ]
        if Info.NAME in wanted.infos:
            infos.append(codec.encode_info_text(Info.NAME, wanted.name))
        if Info.DESCRIPTION in wanted.infos and export.description:
            infos.append(codec.encode_info_text(Info.DESCRIPTION, export.description))
        answers = [codec.encode_reply(option, Reply.INFO, info) for info in infos]
        yield Send(b"".join([*answers, codec.encode_reply(option, Reply.ACK)]))
        return self._chosen(wanted.name) if option == Option.GO else None

    def _export_name(self, data: bytes) -> Handshake[Chosen]:
        name = codec.text(data, "the NBD client's choice of an export")
        export = self._offer.find(name)
        if export is None:
            raise ProtocolError(f"the NBD client wants an export that is not there: {name[:80]!r}")
        answer = codec.EXPORT_NAME_REPLY.pack(export.size(), export.flags())
        yield Send(answer if self._no_zeroes else answer + bytes(codec.RESERVED_ZEROES))
        return self._chosen(name)

    def _chosen(self, name: str) -> Chosen:
        contexts = self._contexts if self._context_export == name else ()
        return Chosen(name, self._structured, dict(enumerate(contexts)))


def _parsed(parse: Callable[[bytes], T], data: bytes) -> T | None:
    """Return what ``data`` says; None for what is no sense, which the client is told."""
    try:
        return parse(data)
    except ProtocolError:
        return None


def _matching(offered: Sequence[str], queries: Sequence[str], *, listing: bool) -> tuple[str, ...]:
    """Return the contexts that the queries mean, each once."""
    if listing and not queries:
        return tuple(offered)
    found: dict[str, None] = {}
    for query in queries:
        for name in offered:
            if name == query or (query.endswith(":") and listing and name.startswith(query)):
                found[name] = None
    return tuple(found)
