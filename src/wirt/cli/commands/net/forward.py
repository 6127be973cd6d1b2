"""wirt net forward"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example, parse_forward
from wirt.cli.output import print_json, print_table, say
from wirt.errors import UsageError
from wirt.spec.nic import Forward


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("action", choices=["add", "rm", "ls"])
    parser.add_argument(
        "forward", metavar="[ADDRESS:]HOST:GUEST[/udp]", nargs="?", default="",
        help="HOST 0: a free port",
    )  # fmt: skip
    parser.add_argument("--nic", default="", metavar="CARD", help="which card (the first user one)")
    example(parser, "wirt net forward web add 8080:80", "wirt net forward web ls")


def run(args: argparse.Namespace) -> int:
    """Make ports of a guest on a user network reachable on the host, while it runs."""
    import msgspec

    from wirt.vm.context import Context
    from wirt.vm.network.forwards import add_forward, forwards_of, remove_forward

    context = Context(say=say)
    if args.action == "ls":
        return _list(forwards_of(context, args.name), as_json=args.json)
    if not args.forward:
        raise UsageError("which port?", hint=f"wirt net forward {args.name} {args.action} 8080:80")
    forward = msgspec.convert(parse_forward(args.forward), Forward)
    if args.action == "add":
        forward = add_forward(context, args.name, forward, args.nic)
    else:
        remove_forward(context, args.name, forward, args.nic)
    if args.json:
        print_json(forward)
    else:
        done = "forwarded to" if args.action == "add" else "no longer forwarded to"
        where = f"{forward.host_address}:{forward.host_port}/{forward.protocol}"
        print(f"{args.name}: {where} is {done} port {forward.guest_port}")
    return 0


def _list(forwards: list[Forward], *, as_json: bool) -> int:
    if as_json:
        print_json(forwards)
    else:
        rows = [
            (one.protocol, f"{one.host_address}:{one.host_port}", str(one.guest_port))
            for one in forwards
        ]
        print_table(("PROTOCOL", "HOST", "GUEST"), rows)
    return 0
