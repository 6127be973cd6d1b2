"""wirt tree"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table
from wirt.units import MIB, format_size
from wirt.vm.context import Context
from wirt.vm.family import Node, drawn, family


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt tree", "wirt tree --json")


def run(args: argparse.Namespace) -> int:
    """Draw which machine and state stands on which state, and what each costs by itself."""
    nodes = family(Context())
    if args.json:
        print_json(nodes)
    elif not nodes:
        print("there are no machines")
    else:
        rows = [
            (branch + _name(node), *_cost(node), _known_as(node)) for branch, node in drawn(nodes)
        ]
        print_table(("FAMILY", "OWN RAM", "OWN DISK", "KNOWN AS"), rows)
    return 0


def _name(node: Node) -> str:
    return node.name if node.kind == "machine" else f"state {node.name}"


def _cost(node: Node) -> tuple[str, str]:
    return _size(node.ram), _size(node.disk)


def _size(size: int) -> str:
    return format_size(size // MIB * MIB if size >= MIB else size) if size else "-"


def _known_as(node: Node) -> str:
    if node.kind == "machine":
        return node.note or node.status
    names = [f"snapshot {name}" for name in node.snapshots]
    return ", ".join(names + [f"template {name}" for name in node.templates])
