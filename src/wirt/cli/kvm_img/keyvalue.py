"""Lists of ``name=value`` as in ``-o``: commas separate, two of them are one in a value."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.failure import Failure

HELP = frozenset({"?", "help"})


def is_joinable(text: str) -> bool:
    """Return whether ``text`` stays what it is when others are joined to it by commas."""
    return bool(text) and text[0] != "," and (len(text) - len(text.rstrip(","))) % 2 == 0


def joined(texts: Sequence[str]) -> str | None:
    """Return all ``-o`` of a command as one list, None without any. Raises Failure."""
    for text in texts:
        if not is_joinable(text):
            raise Failure(f"Invalid option list: {text}")
    return ",".join(texts) if texts else None


def parse_list(text: str, *, first: str = "") -> list[tuple[str, str]]:
    """Return the (name, value) pairs. A word alone means on, with ``no`` before it off.

    ``first`` names the first value where that has no name.
    """
    pairs: list[tuple[str, str]] = []
    while text:
        name, text = _name(text)
        if text.startswith("="):
            value, text = _value(text[1:])
        elif first and not pairs:
            value, text = _value(name + text)
            name = first
        else:
            name, value = (name[2:], "off") if name.startswith("no") else (name, "on")
        pairs.append((name, value))
        text = text.removeprefix(",")
    return pairs


def _name(text: str) -> tuple[str, str]:
    end = next((i for i, char in enumerate(text) if char in "=,"), len(text))
    return text[:end], text[end:]


def _value(text: str) -> tuple[str, str]:
    """Split off a value, undoubling its commas."""
    value = ""
    while True:
        part, comma, rest = text.partition(",")
        value += part
        if not comma:
            return value, ""
        if not rest.startswith(","):
            return value, "," + rest
        value, text = value + ",", rest[1:]


def asks_for_help(text: str) -> bool:
    return any(name in HELP and value == "on" for name, value in parse_list(text))


def escaped(value: str) -> str:
    """Return a value as it is written in a list."""
    return value.replace(",", ",,")
