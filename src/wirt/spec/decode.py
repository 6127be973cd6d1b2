"""From foreign data (TOML, JSON, flags) to spec structs, collecting every problem.

msgspec stops at the first error and cannot read ``1G``; this walk uses its type
descriptions, so that units, unknown keys and all problems of a file are handled in one
place and still declared once, in the structs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as types

from wirt.errors import UsageError
from wirt.units import parse_size

T = TypeVar("T")


class Problem(msgspec.Struct, frozen=True):
    """What is wrong at ``path``: a sequence of keys and list indexes."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""

    @property
    def key(self) -> str:
        return format_path(self.path)


def format_path(path: tuple[str | int, ...]) -> str:
    """Return ``disks[0].image`` for ``("disks", 0, "image")``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


class _Walk(msgspec.Struct):
    problems: list[Problem] = msgspec.field(default_factory=list)

    def refuse(self, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        self.problems.append(Problem(path, message, hint))


class _Refused(Exception):
    pass


def decode(tree: object, cls: type[T]) -> tuple[T | None, list[Problem]]:
    """Return the struct, or None and every problem found."""
    walk = _Walk()
    try:
        value = _value(tree, types.type_info(cls), (), walk, {})
    except _Refused:
        value = None
    return (None if walk.problems else value), walk.problems


def _value(
    tree: Any, kind: types.Type, path: tuple[str | int, ...], walk: _Walk, extra: dict[str, Any]
) -> Any:
    if isinstance(kind, types.Metadata):
        return _value(tree, kind.type, path, walk, kind.extra or extra)
    if isinstance(kind, types.StructType):
        return _struct(tree, kind, path, walk)
    if isinstance(kind, types.UnionType):
        return _union(tree, kind, path, walk, extra)
    if isinstance(kind, types.VarTupleType):
        return _tuple(tree, kind, path, walk)
    if extra.get("unit") == "bytes" and isinstance(tree, str):
        tree = _size(tree, path, walk, extra.get("default_unit", ""))
    return _leaf(tree, kind, path, walk)


def _size(text: str, path: tuple[str | int, ...], walk: _Walk, default_unit: str) -> int:
    try:
        return parse_size(text, default_unit=default_unit)
    except UsageError as error:
        walk.refuse(path, error.message, error.hint)
        raise _Refused from error


def _struct(tree: Any, kind: types.StructType, path: tuple[str | int, ...], walk: _Walk) -> Any:
    if not isinstance(tree, Mapping):
        walk.refuse(path, f"a table is expected here, not {_name_of(tree)}")
        raise _Refused
    fields = {item.encode_name: item for item in kind.fields}
    _refuse_unknown(tree, kind, set(fields), path, walk)
    values: dict[str, Any] = {}
    for key, item in fields.items():
        if key in tree:
            try:
                values[item.name] = _value(tree[key], item.type, (*path, key), walk, {})
            except _Refused:
                continue
        elif item.required:
            walk.refuse((*path, key), "is missing")
    if walk.problems:
        raise _Refused
    return kind.cls(**values)


def _refuse_unknown(
    tree: Mapping[Any, Any],
    kind: types.StructType,
    known: set[str],
    path: tuple[str | int, ...],
    walk: _Walk,
) -> None:
    allowed = known | ({kind.tag_field} if kind.tag_field else set())
    for key in tree:
        if key not in allowed:
            near = _nearest(str(key), sorted(allowed))
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(allowed))}"
            walk.refuse((*path, str(key)[:60]), "is not a setting", hint)


def _union(
    tree: Any,
    kind: types.UnionType,
    path: tuple[str | int, ...],
    walk: _Walk,
    extra: dict[str, Any],
) -> Any:
    plain = [_bare(member) for member in kind.types]
    if tree is None and any(isinstance(member, types.NoneType) for member in plain):
        return None
    structs = {m.tag: m for m in plain if isinstance(m, types.StructType) and m.tag is not None}
    if structs:
        return _tagged(tree, structs, path, walk)
    members = [member for member in kind.types if not isinstance(_bare(member), types.NoneType)]
    return _value(tree, members[0], path, walk, extra)


def _tagged(
    tree: Any,
    structs: dict[str | int, types.StructType],
    path: tuple[str | int, ...],
    walk: _Walk,
) -> Any:
    if isinstance(tree, str):  # `backend = "user"` is short for `{ type = "user" }`
        tree = {"type": tree}
    tag = tree.get("type") if isinstance(tree, Mapping) else None
    if not isinstance(tag, str) or tag not in structs:
        known = ", ".join(sorted(str(name) for name in structs))
        said = f"not {tag!r}" if tag is not None else "which is missing"
        walk.refuse((*path, "type"), f"must be one of {known}; {said}")
        raise _Refused
    return _struct(tree, structs[tag], path, walk)


def _bare(kind: types.Type) -> types.Type:
    return kind.type if isinstance(kind, types.Metadata) else kind


def _tuple(
    tree: Any, kind: types.VarTupleType, path: tuple[str | int, ...], walk: _Walk
) -> tuple[Any, ...]:
    if not isinstance(tree, list | tuple):
        walk.refuse(path, f"a list is expected here, not {_name_of(tree)}")
        raise _Refused
    values = []
    for index, item in enumerate(tree):
        try:
            values.append(_value(item, kind.item_type, (*path, index), walk, {}))
        except _Refused:
            continue
    return tuple(values)


def _leaf(tree: Any, kind: types.Type, path: tuple[str | int, ...], walk: _Walk) -> Any:
    problem = _leaf_problem(tree, kind)
    if problem:
        walk.refuse(path, *problem)
        raise _Refused
    return tree


def _leaf_problem(tree: Any, kind: types.Type) -> tuple[str, str] | None:
    if isinstance(kind, types.BoolType):
        return None if isinstance(tree, bool) else _expected("true or false", tree)
    if isinstance(kind, types.IntType):
        return _int_problem(tree, kind)
    if isinstance(kind, types.StrType):
        return _str_problem(tree, kind)
    if isinstance(kind, types.LiteralType):
        return _literal_problem(tree, kind)
    return _expected(type(kind).__name__, tree)


def _int_problem(tree: Any, kind: types.IntType) -> tuple[str, str] | None:
    if isinstance(tree, bool) or not isinstance(tree, int):
        return _expected("a whole number", tree)
    if kind.ge is not None and tree < kind.ge:
        return f"{tree} is too small: at least {kind.ge}", ""
    if kind.le is not None and tree > kind.le:
        return f"{tree} is too large: at most {kind.le}", ""
    return None


def _str_problem(tree: Any, kind: types.StrType) -> tuple[str, str] | None:
    if not isinstance(tree, str):
        return _expected("text", tree)
    if kind.max_length is not None and len(tree) > kind.max_length:
        return f"is too long: {len(tree)} characters, at most {kind.max_length}", ""
    try:
        msgspec.convert(tree, _pattern_type(kind.pattern))
    except msgspec.ValidationError:
        return f"{tree[:60]!r} is not allowed here", f"it must match {kind.pattern}"
    return None


def _pattern_type(pattern: str | None) -> Any:
    from typing import Annotated

    return Annotated[str, msgspec.Meta(pattern=pattern)] if pattern else str


def _literal_problem(tree: Any, kind: types.LiteralType) -> tuple[str, str] | None:
    if tree in kind.values:
        return None
    near = _nearest(str(tree), [str(value) for value in kind.values])
    known = ", ".join(str(value) for value in kind.values)
    return (
        f"{str(tree)[:60]!r} is not one of {known}",
        f"did you mean {near[0]!r}?" if near else "",
    )


def _nearest(word: str, known: list[str]) -> list[str]:
    from difflib import get_close_matches  # only who mistyped waits for it

    return get_close_matches(word, known, n=1)


def _expected(what: str, tree: Any) -> tuple[str, str]:
    return f"{what} is expected here, not {_name_of(tree)}", ""


def _name_of(tree: Any) -> str:
    names = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a number"}
    return names.get(type(tree), type(tree).__name__)
