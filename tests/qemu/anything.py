"""Strategies for any machine that the spec allows, read from its types."""

from typing import Any

from hypothesis import strategies as st
from msgspec import inspect as types

from wirt.spec.machine import Machine

LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "machine_type": st.sampled_from(["q35", "pc", "q35", "pc-q35-7.2", "isapc", "q35,vmport=off"]),
    "format": st.sampled_from(["raw", "qcow2", "vmdk", "vdi", "qcow3"]),
    "memory": st.sampled_from([64 << 20, (128 << 20) + 12345]),
    "uuid": st.just("") | st.uuids().map(str),
    "args": st.just([]),
    "image": st.sampled_from(["a.img", "b, c.img", "Ü.img", ""]),
    "mac": st.just(""),
    "id": st.sampled_from(["", "", "", "", "x", "video"]),
    "boot_index": st.none() | st.integers(0, 255),
    "listen": st.sampled_from(["unix", "127.0.0.1:7", "nonsense"]),
}
"""Settings of which nearly every text is wrong: what people write."""


def machines() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for trees as ``machine.toml`` has them."""
    return _of(types.type_info(Machine))


def _of(kind: types.Type, key: str = "") -> st.SearchStrategy[Any]:
    if key in LIKELY:
        return LIKELY[key]
    match kind:
        case types.Metadata():
            return _of(kind.type, key)
        case types.StructType():
            return _struct(kind)
        case types.UnionType():
            return st.one_of([_of(member, key) for member in kind.types])
        case types.VarTupleType():
            return st.lists(_of(kind.item_type), max_size=3)
        case types.LiteralType():
            return st.sampled_from(kind.values)
        case types.BoolType():
            return st.booleans()
        case types.NoneType():
            return st.none()
        case types.IntType():
            return _number(kind)
        case types.StrType():
            return _text(kind)
    raise AssertionError(kind)


def _struct(kind: types.StructType) -> st.SearchStrategy[dict[str, Any]]:
    fields = {item.encode_name: _of(item.type, item.encode_name) for item in kind.fields}
    needed = {item.encode_name for item in kind.fields if item.required}
    required = {name: strategy for name, strategy in fields.items() if name in needed}
    if kind.tag is not None:
        required["type"] = st.just(kind.tag)
    optional = {name: strategy for name, strategy in fields.items() if name not in needed}
    return st.fixed_dictionaries(required, optional=optional)


def _number(kind: types.IntType) -> st.SearchStrategy[int]:
    low = kind.ge or 0
    high = kind.le if kind.le is not None else low + 10
    return st.integers(low, min(high, low + 300)) | st.sampled_from([low, high])


def _text(kind: types.StrType) -> st.SearchStrategy[str]:
    if kind.pattern:
        return st.from_regex(kind.pattern, fullmatch=True).filter(lambda text: len(text) < 60)
    return st.text(max_size=20)
