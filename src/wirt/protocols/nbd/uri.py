"""How an NBD export is named.

::

    nbd://HOST[:PORT]/EXPORT            nbd+unix:///EXPORT?socket=PATH
    nbds://[USER@]HOST/EXPORT           nbds+unix://… : with TLS
    nbd:HOST:PORT[:exportname=EXPORT]   nbd:unix:PATH[:exportname=EXPORT]

Specification: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md; the last line
is QEMU's older way. Parameters: ``socket``, ``tls-certificates`` (a directory),
``tls-psk-file``, ``tls-hostname``, and wirt's own ``reconnect`` (seconds to try again for when
a connection breaks) and ``connections`` (at most).
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from wirt.errors import UsageError
from wirt.protocols.nbd.codec import DEFAULT_PORT, MAX_STRING

_PARAMETERS = {
    "socket", "tls-certificates", "tls-psk-file", "tls-hostname", "reconnect", "connections",
}  # fmt: skip
_EXPORT = ":exportname="
_HINT = "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH"


class Address(msgspec.Struct, frozen=True):
    """One export of one server."""

    socket: str = ""
    """The path of a unix socket; empty for TCP."""
    host: str = ""
    port: int = DEFAULT_PORT
    export: str = ""
    tls: bool = False
    user: str = ""
    certificates: str = ""
    psk_file: str = ""
    hostname: str = ""
    """Another name than ``host`` for the server's certificate."""
    reconnect: float = 0.0
    connections: int = 4


def parse_address(name: str) -> Address:
    """Return what ``name`` means. Raises UsageError."""
    try:
        address = _parse_uri(name) if "://" in name else _parse_old(name)
        if len(address.export.encode()) > MAX_STRING or "\0" in address.export:
            raise ValueError("its name is too long, or holds a NUL")
    except ValueError as error:
        raise UsageError(f"{name[:200]!r} names no NBD export: {error}", hint=_HINT) from None
    return address


def _parse_old(name: str) -> Address:
    rest, _, export = name.removeprefix("nbd:").partition(_EXPORT)
    if rest.startswith("unix:"):
        return Address(socket=_present(rest.removeprefix("unix:"), "socket"), export=export)
    host, colon, port = rest.rpartition(":")
    if not colon:
        raise ValueError("it needs a port")
    return Address(host=_present(host.strip("[]"), "host"), port=_port(port), export=export)


def _parse_uri(name: str) -> Address:
    parts = urlsplit(name)
    kind, _, transport = parts.scheme.partition("+")
    given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    unknown = sorted(set(given) - _PARAMETERS)
    if unknown:
        raise ValueError(f"there is no parameter {unknown[0]!r}")
    is_unix = transport == "unix"
    if is_unix and parts.hostname:
        raise ValueError("a unix socket has no host: write nbd+unix:///…")
    return Address(
        socket=_present(given.get("socket", ""), "socket") if is_unix else "",
        host="" if is_unix else _present(parts.hostname or "", "host"),
        port=DEFAULT_PORT if parts.port is None else parts.port,
        export=unquote(parts.path.removeprefix("/"), errors="strict"),
        tls=kind == "nbds",
        user=unquote(parts.username or ""),
        certificates=given.get("tls-certificates", ""),
        psk_file=given.get("tls-psk-file", ""),
        hostname=given.get("tls-hostname", ""),
        reconnect=_number(given.get("reconnect", "0"), "reconnect", 1e6),
        connections=int(_number(given.get("connections", "4"), "connections", 64)) or 1,
    )


def _present(value: str, what: str) -> str:
    if not value:
        raise ValueError(f"it needs a {what}")
    return value


def _port(value: str) -> int:
    port = int(value) if value.isascii() and value.isdigit() else -1
    if not 0 <= port <= 65535:
        raise ValueError(f"{value!r} is no port")
    return port


def _number(value: str, what: str, most: float) -> float:
    number = float(value)
    if not 0 <= number <= most:
        raise ValueError(f"{what} is 0 to {most:.0f}")
    return number
