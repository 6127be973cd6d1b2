"""The list of all settings, read from the structs: for flags, tables and forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types


class Setting(msgspec.Struct, frozen=True):
    """One key: its dotted name without list indexes, its type in words, and its help."""

    key: str
    kind: str
    default: Any
    description: str
    flags: tuple[str, ...] = ()
    unit: str = ""
    is_list: bool = False


@cache
def settings(cls: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """Return every setting of ``cls``, depth first, in the order of declaration."""
    info = types.type_info(cls)
    return tuple(_of_struct(info, ""))


def _of_struct(info: types.Type, prefix: str) -> Iterator[Setting]:
    if not isinstance(info, types.StructType):
        return
    for item in info.fields:
        description, extra, kind = _unwrap(item.type)
        key = f"{prefix}{item.encode_name}"
        inner = list(_structs_in(kind))
        yield Setting(
            key=key,
            kind=_kind_name(kind, extra),
            default=None if item.required else _default(item),
            description=description,
            flags=tuple(extra.get("flags", ())),
            unit=extra.get("unit", ""),
            is_list=isinstance(kind, types.VarTupleType),
        )
        seen: set[str] = set()
        for struct in inner:
            for setting in _of_struct(struct, f"{key}."):
                if setting.key not in seen:
                    seen.add(setting.key)
                    yield setting


def _default(item: types.Field) -> Any:
    return None if item.default is msgspec.NODEFAULT else item.default


def _unwrap(kind: types.Type) -> tuple[str, dict[str, Any], types.Type]:
    description: str = ""
    extra: dict[str, Any] = {}
    while isinstance(kind, types.Metadata):
        description = (kind.extra_json_schema or {}).get("description", description)
        extra = kind.extra or extra
        kind = kind.type
    return description, extra, kind


def _structs_in(kind: types.Type) -> Iterator[types.StructType]:
    kind = _unwrap(kind)[2]
    if isinstance(kind, types.StructType):
        yield kind
    elif isinstance(kind, types.UnionType):
        for member in kind.types:
            yield from _structs_in(member)
    elif isinstance(kind, types.VarTupleType):
        yield from _structs_in(kind.item_type)


def _kind_name(kind: types.Type, extra: dict[str, Any]) -> str:
    kind = _unwrap(kind)[2]
    if extra.get("unit") == "bytes":
        return "size"
    if isinstance(kind, types.LiteralType):
        return " | ".join(str(value) for value in kind.values)
    if isinstance(kind, types.VarTupleType):
        return f"list of {_kind_name(kind.item_type, {})}"
    if isinstance(kind, types.UnionType):
        names = [_kind_name(m, {}) for m in kind.types if not isinstance(m, types.NoneType)]
        return " | ".join(dict.fromkeys(names))
    if isinstance(kind, types.StructType):
        return str(kind.tag) if kind.tag is not None else "table"
    words = {types.StrType: "text", types.IntType: "number", types.BoolType: "boolean"}
    return words.get(type(kind), type(kind).__name__)
