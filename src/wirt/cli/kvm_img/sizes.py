"""Sizes as qemu-img reads and writes them."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext

from wirt.cli.kvm_img.failure import Failure, warn

INT64_MAX = (1 << 63) - 1
INT_MAX = (1 << 31) - 1
_UNITS = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_DECIMAL = re.compile(r"[ \t\n\v\f\r]*(\+?)(\d+)(\.\d*)?([a-zA-Z]?)\Z", re.ASCII)
_HEX = re.compile(r"[ \t\n\v\f\r]*\+?0[xX]([0-9a-fA-F]+)([a-zA-Z]?)\Z", re.ASCII)
_MOST = (1 << 64) - 1


class BadSize(ValueError):
    """The text is no size."""


class SizeRange(ValueError):
    """The size does not fit 64 bits."""


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` means. Raises BadSize, SizeRange."""
    found = _HEX.match(text)
    if found:
        value, unit = int(found[1], 16), _unit(found[2])
        if found[2]:
            warn(f"Using a multiplier suffix on hex numbers is deprecated: {text}")
        return _bounded(value << unit)
    found = _DECIMAL.match(text)
    if not found:
        raise BadSize(text)
    unit = _unit(found[4])
    fraction = Decimal("0" + found[3]) if found[3] and found[3] != "." else Decimal(0)
    if fraction and not unit:
        raise BadSize(text)
    if len(found[2]) > 20:
        raise SizeRange(text)
    with localcontext() as context:
        context.prec = 60
        part = int(fraction * (1 << unit) + Decimal("0.5"))
    return _bounded((int(found[2]) << unit) + part)


def _unit(letter: str) -> int:
    if not letter:
        return 0
    if letter.upper() not in _UNITS:
        raise BadSize(letter)
    return 10 * _UNITS[letter.upper()]


def _bounded(value: int) -> int:
    if value > _MOST:
        raise SizeRange
    return value


def size_argument(name: str, text: str, least: int = 0, most: int = INT64_MAX) -> int:
    """Return a size from the command line. Raises Failure that names ``name``."""
    try:
        value = parse_size(text)
    except BadSize:
        raise Failure(
            f"Invalid {name} specified. You may use k, M, G, T, P or E suffixes for\n"
            "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        ) from None
    except SizeRange:
        value = -1
    if not least <= value <= most:
        raise Failure(f"Invalid {name} specified. Must be between {least} and {most}.")
    return value


def number_argument(text: str, most: int, least: int = 0) -> int | None:
    """Return a number as C's strtoul reads it, or None if it is none or out of bounds."""
    text = text.strip()
    match = re.fullmatch(r"\+?(0[xX][0-9a-fA-F]+|\d+)", text, re.ASCII)
    if not match or len(text) > 40:
        return None
    digits = match[1]
    try:
        octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
        value = int(digits, 8 if octal else 0)
    except ValueError:
        return None
    return value if least <= value <= most else None


def human_size(value: int) -> str:
    """Return ``value`` bytes with three significant digits, in units of 1024."""
    import math

    if not value:
        return "0 B"
    # As C's frexp(): from 1000 on the next unit is taken.
    unit = max(0, math.frexp(value / (1000.0 / 1024.0))[1] - 1) // 10
    scaled = value / (1 << unit * 10)
    return f"{scaled:.3g} {('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[unit]}B"
