"""wirt ssh"""

from __future__ import annotations

import argparse
import os

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-l", "--user", default="", help="user in the guest")
    add_machine(parser)
    parser.add_argument(
        "command", metavar="-- COMMAND", nargs="*", default=[], help="what ssh runs"
    )
    example(parser, "wirt ssh web", "wirt ssh -l root web -- systemctl status")


def run(args: argparse.Namespace) -> int:
    """Become ssh, connected through wirt's helper in the guest."""
    from wirt.vm.context import Context
    from wirt.vm.ssh import ssh_command

    line = ssh_command(Context(say=say), args.name, user=args.user, words=args.command)
    os.execv(line[0], line)  # noqa: S606 - ssh takes over this process, its terminal and exit code
