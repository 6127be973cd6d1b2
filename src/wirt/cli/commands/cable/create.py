"""wirt cable create"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from wirt.cli.commands.cable.shape import add_shape

    parser.add_argument("a", metavar="A", help="SWITCH or SWITCH:PORT, on this host")
    parser.add_argument(
        "b", metavar="B",
        help="another one, ssh://[USER@]HOST[:PORT]/SWITCH, ssh://HOST//PATH, or vde:///PATH",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="name of the cable (made from the ends')")
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="KEY=VALUE", help="as in ssh -o"
    )
    add_shape(parser)
    example(
        parser,
        "wirt cable create dmz lan",
        "wirt cable create dmz ssh://host2/dmz --delay 50ms --loss 10",
        "wirt cable create dmz ssh://root@host2:2222//run/vde/ctl",
    )


def run(args: argparse.Namespace) -> int:
    """Lay a cable between two switches."""
    from wirt.cli.commands.cable.shape import shape_of
    from wirt.store.wires import Shape
    from wirt.vm.context import Context
    from wirt.vm.network.cables import cable_facts, cable_name, create_cable

    context = Context(say=say)
    name = args.name or cable_name(args.a, args.b)
    shape = shape_of(args, Shape())
    create_cable(context, name, args.a, args.b, shape, tuple(args.ssh_option))
    facts = cable_facts(context, name)
    if args.json:
        print_json(facts)
    else:
        print(f"{name}: {facts.status}, {facts.a} ↔ {facts.b}")
    return 0
