"""The address of a file on a server, taken apart; its password is never shown."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import msgspec

from wirt.errors import UsageError


class Url(msgspec.Struct, frozen=True):
    """``scheme://user:password@host:port/path?query``."""

    scheme: str
    host: str
    port: int
    path: str
    """As it stands in the address, with the query, still encoded."""
    user: str = ""
    password: str = ""

    @property
    def shown(self) -> str:
        """The address for messages, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{host}{port}{self.path}"


def parse_url(text: str, default_ports: dict[str, int]) -> Url:
    """Take an address apart; ``default_ports`` are those of the schemes that may be named.

    Raises UsageError.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"this is no address: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in default_ports or not parts.hostname:
        raise UsageError("an address names a server and a file: SCHEME://HOST/PATH")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(char) < 33 or ord(char) == 127 for char in path + parts.hostname):
        raise UsageError("an address has no spaces and control characters", hint="write %20")
    return Url(
        scheme,
        parts.hostname,
        default_ports[scheme] if port is None else port,
        path,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )
