"""wirt explain"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "command", metavar="-- LINE", nargs="*", default=[], help="the line: kvm -m 512 …"
    )
    example(
        parser,
        "wirt explain -- kvm -m 512 -net nic,vlan=0 -net user -localtime -hda XP.img",
        "wirt explain --json -- kvm -no-kvm-pit -hda XP.img",
    )


def run(args: argparse.Namespace) -> int:
    """Explain an old line."""
    from wirt.cli.kvm.explain import explain

    if not args.command:
        raise UsageError("there is no line to explain", hint="wirt explain -- kvm -hda disk.img")
    return explain(args.command, as_json=args.json)
