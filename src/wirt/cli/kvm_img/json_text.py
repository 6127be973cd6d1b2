"""JSON as QEMU prints it.

QEMU keeps objects in hash tables of 512 chains and prints them in the order in which they
lie there. Text output has the same order, so programs (and people) are used to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_CHAINS = 512
_EMPTY = re.compile(r"^( *)(.*)([\[{])([\]}])(?=,?$)", re.MULTILINE)


def _chain(key: str) -> int:
    """Return the chain of a key: the hash of Samba's trivial database, which QEMU uses."""
    raw = key.encode()
    value = 0x238F13AF * len(raw) & 0xFFFFFFFF
    for place, byte in enumerate(raw):
        value = value + (byte << (place * 5 % 24)) & 0xFFFFFFFF
    return (1103515243 * value + 12345 & 0xFFFFFFFF) % _CHAINS


def in_order(value: Any) -> Any:
    """Return ``value`` with the keys of all objects in QEMU's order.

    Of one chain, what came last is first.
    """
    if isinstance(value, Mapping):
        latest_first = list(value)[::-1]
        return {key: in_order(value[key]) for key in sorted(latest_first, key=_chain)}
    if isinstance(value, list | tuple):
        return [in_order(item) for item in value]
    return value


def pretty(value: Any) -> str:
    """Return indented JSON; an empty list or object takes two lines, as QEMU's do."""
    text = json.dumps(in_order(value), indent=4)
    return _EMPTY.sub(r"\1\2\3\n\1\4", text)


def compact(value: Any) -> str:
    """Return JSON on one line, as in ``json:`` file names."""
    return json.dumps(in_order(value))


def outline(value: Any, depth: int = 1) -> str:
    """Return the lines of the text output for a nested value."""
    lines = []
    if isinstance(value, Mapping):
        for key, item in in_order(value).items():
            lines.append(_entry(key.replace("-", " "), item, depth))
    else:
        for number, item in enumerate(value):
            lines.append(_entry(f"[{number}]", item, depth))
    return "".join(lines)


def _entry(label: str, item: Any, depth: int) -> str:
    start = f"{' ' * 4 * depth}{label}:"
    if isinstance(item, Mapping | list | tuple):
        return f"{start}\n{outline(item, depth + 1)}"
    if isinstance(item, bool):
        item = "true" if item else "false"
    return f"{start} {item}\n"
