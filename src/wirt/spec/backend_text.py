"""A backend in one word, as commands take it: ``switch=dmz,vlan=7``, ``user``, ``bridge=br0``."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec

from wirt.errors import UsageError
from wirt.spec.nic import Backend

_MAIN = {"switch": "name", "network": "name", "tap": "interface", "vde": "path", "stream": "path"}
_WORDS = {"on": True, "off": False}
EXAMPLES = "user, network=NAME, switch=NAME[,vlan=N], tap[=IFACE], bridge=BRIDGE, vde=PATH, none"


def parse_backend(text: str) -> Backend:
    """Return the backend that ``text`` names. Raises UsageError."""
    kind, *rest = text.split(",")
    kind, _, main = kind.partition("=")
    tree: dict[str, Any] = {"type": kind}
    if kind not in {"bridge", *_tags()}:
        raise UsageError(f"there is no backend {kind[:60]!r}", hint=_hint())
    if kind == "bridge":
        tree = {"type": "tap", "bridge": main}
    elif main:
        if kind not in _MAIN:
            raise UsageError(f"{kind!r} takes no name", hint=EXAMPLES)
        tree[_MAIN[kind]] = main
    for part in rest:
        key, equals, value = part.partition("=")
        tree[key] = value if equals else True
        if value in _WORDS and key in _switches(kind):
            tree[key] = _WORDS[value]
    try:
        return msgspec.convert(tree, Backend, strict=False)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise UsageError(f"{text[:60]!r} is no backend: {error}", hint=_hint()) from error


def _hint() -> str:
    return f"{EXAMPLES}; all: {', '.join(sorted(_tags()))}"


def _switches(kind: str) -> set[str]:
    """Return the settings of a backend that are on or off."""
    structs = [struct for struct in get_args(Backend) if struct.__struct_config__.tag == kind]
    return {key for struct in structs for key, of in get_type_hints(struct).items() if of is bool}


def _tags() -> list[str]:
    return [str(struct.__struct_config__.tag) for struct in get_args(Backend)]


def format_backend(backend: Backend) -> str:
    """Return a backend as a person reads it."""
    tree = msgspec.to_builtins(backend)
    kind = tree.pop("type")
    main = tree.pop(_MAIN.get(kind, ""), "")
    tree.pop("forwards", None)
    words = [f"{kind}={main}" if main else kind]
    words += [f"{key}={value}" for key, value in tree.items() if not isinstance(value, list)]
    return ",".join(words)
