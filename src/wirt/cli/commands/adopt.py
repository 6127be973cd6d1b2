"""wirt adopt"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable, say
from wirt.errors import UsageError
from wirt.vm.context import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--name", default="", help="name of the machine (the line's -name)")
    parser.add_argument("--pid", type=int, metavar="PID", help="a QEMU that runs already")
    parser.add_argument(
        "command", metavar="-- LINE", nargs="*", default=[], help="the line: kvm -m 512 …"
    )
    example(
        parser,
        "wirt adopt -- kvm -m 512 -net nic -net user -hda XP.img -name XP_Test1",
        "wirt adopt --pid 4711 --name web",
    )


def run(args: argparse.Namespace) -> int:
    """Make a machine of an old line or of a running QEMU."""
    from wirt.vm.adopt import adopt_line, adopt_process

    context = Context(say=say)
    if (args.pid is None) == (not args.command):
        raise UsageError("a line or --pid is needed", hint="wirt adopt -- kvm -hda disk.img")
    if args.pid is not None:
        adopted = adopt_process(context, args.pid, args.name)
    else:
        adopted = adopt_line(context, args.command, args.name)
    if args.json:
        print_json(
            {"name": adopted.name, "directory": adopted.paths.root, "remarks": adopted.remarks}
        )
        return 0
    for remark in adopted.remarks:
        print(printable(f"  {remark}"))
    print(f"{adopted.name}: adopted; wirt start {adopted.name}")
    return 0
