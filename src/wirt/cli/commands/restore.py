"""wirt restore"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, printable, say
from wirt.errors import UsageError
from wirt.vm.context import Context
from wirt.vm.restore import Restored, restore


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("snapshot", metavar="NAME", help="name of the snapshot")
    parser.add_argument("--to", metavar="NEW", default="", help="make a new machine of it instead")
    parser.add_argument(
        "--discard", action="store_true",
        help="do not keep what VM is now as the snapshot `replaced`",
    )  # fmt: skip
    example(
        parser, "wirt restore web before-upgrade", "wirt restore web before-upgrade --to web-then"
    )


def run(args: argparse.Namespace) -> int:
    """Bring a machine back to a snapshot, or make a new one of it."""
    if args.to and args.discard:
        raise UsageError("with --to nothing is replaced", hint="leave --discard out")
    context = Context(say=say)
    done = restore(context, args.name, args.snapshot, to=args.to, discard=args.discard)
    if args.json:
        print_json(done)
    else:
        tell(done)
    return 0


def tell(done: Restored) -> None:
    """Say what a restore came to."""
    state = "runs" if done.running else "is down, as it was"
    print(f"{done.machine}: is at {done.snapshot}, and {state}")
    for protocol, host, guest in done.forwards:
        print(f"  port {guest}/{protocol} of the guest is {host} on this host")
    if done.unchanged:
        print(printable(f"  not changed: {', '.join(done.unchanged)}"))
    if done.kept:
        print(f"  what it was is snapshot {done.kept}")
