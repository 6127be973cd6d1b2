"""The grammar of option values: ``first,key=value,flag,noflag``, commas doubled in values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wirt.errors import UsageError
from wirt.qemu.legacy.note import Refused
from wirt.units import parse_size

_FLAGS = {
    "server", "wait", "telnet", "delay", "ipv4", "ipv6", "mux", "signal", "websocket", "boot",
    "snapshot", "readonly", "menu", "strict", "restrict", "vnet_hdr", "vhost", "vhostforce",
    "lossy", "reverse", "sasl", "tls", "acl", "password", "disable-ticketing", "unix",
}  # fmt: skip
"""What may stand alone: ``server`` is ``server=on``, ``nowait`` is ``wait=off``."""
_TRUE = {"on", "yes", "true", "y", "1"}
_FALSE = {"off", "no", "false", "n", "0"}


class Values:
    """The parts of a value, taken one by one; what is left was not understood."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def take(self, *keys: str, default: str = "") -> str:
        """Return the last value of any of ``keys`` and forget it."""
        found = [text for key, text in self.pairs if key in keys]
        self.pairs = [pair for pair in self.pairs if pair[0] not in keys]
        return found[-1] if found else default

    def take_all(self, key: str) -> list[str]:
        """Return every value of ``key`` and forget them."""
        found = [text for name, text in self.pairs if name == key]
        self.pairs = [pair for pair in self.pairs if pair[0] != key]
        return found

    def flag(self, *keys: str, default: bool = False) -> bool:
        """Return a boolean. Raises Refused for another word."""
        text = self.take(*keys, default="on" if default else "off").lower()
        if text not in _TRUE | _FALSE:
            raise Refused(f"{keys[0]}={text!r} is neither on nor off")
        return text in _TRUE

    def has(self, key: str) -> bool:
        return any(name == key for name, _ in self.pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)


def split(text: str) -> list[str]:
    """Split at commas; a doubled comma is one that belongs to the value."""
    parts = [""]
    for piece in re.split(r"(,,|,)", text):
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += "," if piece == ",," else piece
    return parts


def parse(text: str, first: str = "") -> Values:
    """Return the parts of ``text``; a first one without ``=`` is the value of ``first``."""
    if text.startswith("{"):
        return Values(list(flatten(parse_json(text))))
    pairs: list[tuple[str, str]] = []
    for index, part in enumerate(split(text)):
        key, equals, value = part.partition("=")
        if equals:
            pairs.append((key, value))
        elif index == 0 and first:
            pairs.append((first, part))
        elif part:
            pairs.append(flag_of(part))
    return Values(pairs)


def flag_of(word: str) -> tuple[str, str]:
    """Return ``("wait", "off")`` for ``nowait``."""
    if word.startswith("no") and word[2:] in _FLAGS:
        return word[2:], "off"
    return word, "on"


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object as options take it. Raises Refused."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Refused("a JSON object is expected")
    return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return JSON as key and value, as QEMU's own dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            for item in value:
                inner = item if isinstance(item, dict) else {"": item}
                yield from ((f"{prefix}{key}", text) for _, text in flatten(inner))
        elif isinstance(value, bool):
            yield prefix + key, "on" if value else "off"
        else:
            yield prefix + key, str(value)


def join(pairs: list[tuple[str, str]]) -> str:
    """Return the parts as one value: the inverse of ``parse``."""
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)


def number(text: str, what: str, low: int = 0, high: int = 1 << 62) -> int:
    """Return a whole number, also ``0x1f``. Raises Refused."""
    try:
        value = int(text, 0) if re.match(r"(?i)0x", text) else int(text)
    except ValueError:
        raise Refused(f"{what}: {text[:40]!r} is not a number") from None
    if not low <= value <= high:
        raise Refused(f"{what}: {value} is not between {low} and {high}")
    return value


def size(text: str, what: str, default_unit: str = "M") -> int:
    """Return bytes. Raises Refused."""
    try:
        return parse_size(
            text.removesuffix("b").removesuffix("B") or text, default_unit=default_unit
        )
    except UsageError as error:
        raise Refused(f"{what}: {error.message}") from None
