"""Arguments as the words of a command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

import msgspec

from wirt.errors import SpecError
from wirt.qapi.value import Argument, QapiObject, QapiValue


def argv(binary: str, arguments: Iterable[Argument]) -> list[str]:
    """Return the command line, ``binary`` first. Raises SpecError for a NUL in a value."""
    words = [binary]
    for argument in arguments:
        words.append(argument.option)
        if argument.value is not None:
            words.append(_word(argument))
    for word in words:
        if "\x00" in word:
            raise SpecError("a NUL character cannot be on a command line")
    return words


def _word(argument: Argument) -> str:
    value = argument.value
    if not isinstance(value, dict):
        return value or ""
    return _json(value) if argument.json else key_values(value)


def _json(value: QapiObject) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError as error:
        raise SpecError(
            f"{error.object[:200]!r} is not UTF-8", hint="rename the file: QEMU's JSON needs UTF-8"
        ) from error


def key_values(value: QapiObject) -> str:
    """Return ``a=1,b=on,c.d=x``; commas in values are doubled, as QemuOpts reads them."""
    return ",".join(f"{key}={item}" for key, item in _flat(value, ""))


def _flat(value: QapiObject, prefix: str) -> Iterable[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list):  # QemuOpts repeats the key
            yield from ((f"{prefix}{key}", _scalar(part)) for part in item)
        else:
            yield f"{prefix}{key}", _scalar(item)


def _scalar(value: QapiValue) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def shell_line(words: Sequence[str]) -> str:
    """Return the line as a shell reads it, one option on a line."""
    out = shlex.quote(words[0])
    for word in words[1:]:
        separator = " \\\n    " if word.startswith("-") and len(word) > 1 else " "
        out += separator + shlex.quote(word)
    return out
