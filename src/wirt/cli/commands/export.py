"""wirt export"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say
from wirt.qemu.render import shell_line
from wirt.vm.context import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument(
        "--as", dest="form", choices=("kvm", "script"), default="kvm",
        help="a line, or a shell script with it",
    )  # fmt: skip
    example(parser, "wirt export web --as kvm", "wirt export web --as script > web.sh")


def run(args: argparse.Namespace) -> int:
    """Print a machine as a line that needs no wirt."""
    import shlex

    from wirt.vm.export import export

    program = "kvm" if args.form == "kvm" else "qemu-system-x86_64"
    line = export(Context(say=say), args.name, program)
    if args.json:
        print_json(line)
    elif args.form == "kvm":
        print(shlex.join(line))
    else:
        print(f"#!/bin/sh\n# {args.name}, without wirt. Do not run both at once.\nset -e")
        print(f"exec {shell_line(line)}")
    return 0
