"""Memory and NUMA nodes: sizes of old, and the objects that newer lines make of them."""

from __future__ import annotations

from typing import Any

from wirt.qemu.legacy.draft import Draft, Node
from wirt.qemu.legacy.note import Refused
from wirt.spec.hardware import NumaNode
from wirt.units import MIB

_OWN = "ram"


def take_memory(draft: Draft, fields: dict[str, Any]) -> None:
    """Take the memory object that the description makes anyway; keep any other."""
    name = draft.memory_backend
    if not name:
        return
    node = draft.objects.get(name)
    if name == _OWN and node is not None and _understood(draft, node, fields):
        node.used = True
        return
    draft.args += ["-machine", f"memory-backend={name}"]


def _understood(draft: Draft, node: Node, fields: dict[str, Any]) -> bool:
    parts = dict(node.parts)
    kind = parts.pop("qom-type", "")
    for key in ("id", "size", "share"):
        parts.pop(key, None)
    prealloc = parts.pop("prealloc", "off") == "on"
    path = parts.pop("mem-path", "")
    if path and path == draft.facts.memory_file:
        for key in ("readonly", "rom"):
            parts.pop(key, None)
    if parts or kind not in {"memory-backend-ram", "memory-backend-file"}:
        return False
    if prealloc:
        fields["memory_prealloc"] = True
    if path and path != draft.facts.memory_file:
        fields["memory_path"] = draft.facts.own_path(path)
    return True


def numa_nodes(draft: Draft, memory: int) -> tuple[NumaNode, ...]:
    """Return the nodes; those without a size share what is left. Raises Refused."""
    if not draft.numa:
        return ()
    sizes = [_size(draft, size, name) for size, _, name in draft.numa]
    left = memory - sum(sizes)
    open_nodes = sizes.count(0)
    if left < 0 or (left and not open_nodes):
        raise Refused("the nodes have not the memory of the machine", "make mem= of all nodes -m")
    share = max(left // open_nodes // MIB * MIB, MIB) if open_nodes else 0
    sizes = [size or share for size in sizes]
    sizes[-1] += max(memory - sum(sizes), 0)
    return tuple(
        NumaNode(size, vcpus) for size, (_, vcpus, _) in zip(sizes, draft.numa, strict=True)
    )


def _size(draft: Draft, size: int, name: str) -> int:
    node = draft.objects.get(name)
    if node is None:
        return size
    node.used = True
    text = node.parts.get("size", "")
    if not text.isdigit():
        raise Refused(f"the memory object {name[:40]} has no size in bytes", "size=BYTES")
    return int(text)
