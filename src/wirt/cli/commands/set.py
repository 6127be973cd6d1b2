"""wirt set"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say
from wirt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("assignments", metavar="KEY=VALUE", nargs="+", help="a setting")
    example(parser, "wirt set web memory=2G cpu.vcpus=2", "wirt set web 'disks[0].cache=none'")


def run(args: argparse.Namespace) -> int:
    """Change settings; all or none of them."""
    from wirt.vm.context import Context
    from wirt.vm.edit import set_values

    values: dict[str, str] = {}
    for assignment in args.assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r}: KEY=VALUE is expected", hint="wirt set --help")
        values[key] = value
    restart = set_values(Context(say=say), args.name, values)
    if args.json:
        print_json({"name": args.name, "set": values, "restart_needed": restart})
    else:
        later = f"; takes effect at: wirt restart {args.name}" if restart else ""
        print(f"{args.name}: set {', '.join(values)}{later}")
    return 0
