"""The family of states: who stands on what, and what each one costs by itself.

A state costs its files; a machine costs the images that it writes to, and the memory that no
other process has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import msgspec

from wirt.errors import WirtError
from wirt.store.layout import Home, VmPaths
from wirt.store.machines import machine_names
from wirt.store.record import Run, read_record
from wirt.store.snapshots import snapshots
from wirt.store.states import states
from wirt.store.templates import templates
from wirt.vm import state
from wirt.vm.context import Context


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A state or a machine. Sizes in bytes, ``created`` in Unix seconds."""

    kind: Literal["state", "machine"]
    name: str
    """A machine's name; a state's id."""
    parent: str
    """The state that it stands on; "" for none."""
    created: float
    status: str = ""
    """Of a machine."""
    snapshots: tuple[str, ...] = ()
    """By which a state is known: ``MACHINE:NAME``."""
    templates: tuple[str, ...] = ()
    ram: int
    """In memory, and nobody else's: a machine's own pages, a state's memory file."""
    disk: int
    """On disk, and nobody else's."""
    note: str = ""


def family(context: Context) -> list[Node]:
    """Return all states and machines, each behind what it stands on."""
    home = context.home
    nodes = _states(home) + [_machine(home.vm(name)) for name in machine_names(home)]
    return _in_order(nodes)


def _states(home: Home) -> list[Node]:
    known = _labels(home)
    kept = {one.state: one.fingerprint for one in templates(home)}
    return [
        Node(
            kind="state",
            name=one.id,
            parent=one.manifest.parent,
            created=one.manifest.created,
            snapshots=tuple(known.get(one.id, ())),
            templates=(kept[one.id],) if one.id in kept else (),
            ram=blocks([one.paths.memory]),
            disk=blocks(files_below(one.paths.root)),
        )
        for one in states(home)
    ]


def _labels(home: Home) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in machine_names(home):
        for one in snapshots(home.vm(name)):
            found.setdefault(one.state, []).append(f"{name}:{one.name}")
    return found


def _machine(paths: VmPaths) -> Node:
    try:
        record = read_record(paths.record)
        looked = state.look(paths, ask=False)
    except WirtError as error:
        return Node(
            kind="machine", name=paths.name, parent="", created=0.0, status="damaged", ram=0,
            disk=blocks(files_below(paths.disks)), note=str(error),
        )  # fmt: skip
    run = looked.record.run if looked.is_up else None
    return Node(
        kind="machine",
        name=paths.name,
        parent=record.state,
        created=record.created,
        status=looked.status,
        ram=private_memory(run) if run else 0,
        disk=blocks(files_below(paths.disks)),
    )


def private_memory(run: Run) -> int:
    """Return the bytes of memory that a machine alone has; 0 if that may not be known.

    Of a fork that is what is anonymous: pages of the state's memory that no other process has
    mapped at the moment are the state's all the same.
    """
    try:
        with open(f"/proc/{run.pid}/smaps_rollup", encoding="ascii") as file:
            text = file.read()
    except OSError:
        return 0
    if not run.process.alive():
        return 0
    wanted = "Anonymous:" if run.memory == "fork" else "Private_"
    lines = (line.split() for line in text.splitlines() if line.startswith(wanted))
    return sum(int(words[1]) * 1024 for words in lines)


def blocks(files: Iterable[str]) -> int:
    """Return the bytes that files occupy; one that is gone has none."""
    total = 0
    for file in files:
        try:
            total += os.lstat(file).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def files_below(directory: str) -> list[str]:
    """Return the paths of all files in a directory and its directories."""
    return [os.path.join(above, name) for above, _, names in os.walk(directory) for name in names]


def _in_order(nodes: list[Node]) -> list[Node]:
    """Depth first, older ones first; what stands on something unknown is at the top."""
    known = {node.name for node in nodes if node.kind == "state"}
    below: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (node.created, node.name)):
        below.setdefault(node.parent if node.parent in known else "", []).append(node)
    found: list[Node] = []
    waiting = below.pop("", [])[::-1]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if node.kind == "state":
            waiting += below.pop(node.name, [])[::-1]
    return found


def drawn(nodes: list[Node]) -> list[tuple[str, Node]]:
    """Return each node with the branches that lead to it, for a fixed-width font."""
    known = {node.name for node in nodes if node.kind == "state"}
    parents = [node.parent if node.parent in known else "" for node in nodes]
    lines: list[tuple[str, Node]] = []
    trunk: dict[str, str] = {"": ""}
    for index, node in enumerate(nodes):
        parent = parents[index]
        last = parent not in parents[index + 1 :]
        here = trunk[parent]
        branch = ("└─ " if last else "├─ ") if parent else ""
        lines.append((here + branch, node))
        if node.kind == "state":
            trunk[node.name] = here + (("   " if last else "│  ") if parent else "")
    return lines
