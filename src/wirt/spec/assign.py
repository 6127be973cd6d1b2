"""``KEY=VALUE`` as people write it, laid into a tree of settings."""

from __future__ import annotations

import itertools
import re
from typing import Any

from wirt.errors import UsageError
from wirt.spec.machine import Machine
from wirt.spec.settings import Setting, settings

_PART = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)((?:\[\d{1,4}\])*)")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def parse_key(key: str) -> tuple[str | int, ...]:
    """Return ``("disks", 0, "cache")`` for ``disks[0].cache``. Raises UsageError."""
    path: list[str | int] = []
    for part in key.split("."):
        match = _PART.fullmatch(part)
        if not match:
            raise UsageError(f"{key[:60]!r} is not a key", hint="like memory or disks[0].cache")
        path.append(match[1])
        path += [int(index) for index in re.findall(r"\d+", match[2])]
    return tuple(path)


def assign(tree: dict[str, Any], key: str, text: str) -> None:
    """Set ``key`` in ``tree`` to what ``text`` means for it. Raises UsageError."""
    path = parse_key(key)
    value = parse_value(_find(key), text)
    place: Any = tree
    for part, following in itertools.pairwise(path):
        place = _descend(place, part, following, key)
    _put(place, path[-1], value, key)


def _find(key: str) -> Setting:
    generic = re.sub(r"\[\d+\]", "", key)
    known = {setting.key: setting for setting in settings(Machine)}
    if generic in known:
        return known[generic]
    import difflib

    near = difflib.get_close_matches(generic, known, n=1)
    raise UsageError(
        f"{key[:60]!r} is not a setting",
        hint=f"did you mean {near[0]!r}?" if near else "wirt schema lists them",
    )


def parse_value(setting: Setting, text: str) -> Any:
    """Return what ``text`` means for ``setting``; the machine's own check follows later."""
    if setting.kind == "boolean":
        return _boolean(setting.key, text)
    if setting.kind == "number":
        return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text
    if setting.is_list or setting.kind == "table":
        return _toml(setting.key, text)
    return text


def _boolean(key: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"{key}: {text[:40]!r} is neither true nor false")


def _toml(key: str, text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"value = {text}\n")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{key}: {text[:60]!r} is not a TOML value: {error}",
            hint="lists are written [a, b], tables {key = value}",
        ) from error


def _descend(place: Any, part: str | int, following: str | int, key: str) -> Any:
    if isinstance(part, int):
        if not isinstance(place, list) or part >= len(place):
            raise UsageError(f"{key}: there is no item {part}")
        return place[part]
    fresh: Any = [] if isinstance(following, int) else {}
    if not isinstance(place, dict):
        raise UsageError(f"{key}: {part} is not inside a table")
    return place.setdefault(part, fresh)


def _put(place: Any, part: str | int, value: Any, key: str) -> None:
    if isinstance(part, int):
        if not isinstance(place, list) or part > len(place):
            raise UsageError(f"{key}: there is no item {part}")
        place[part : part + 1] = [value]
    elif isinstance(place, dict):
        place[part] = value
    else:
        raise UsageError(f"{key}: not a table")
