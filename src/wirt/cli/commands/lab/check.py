"""wirt lab check"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.commands.lab.up import read
from wirt.cli.output import print_json, printable
from wirt.errors import SpecError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="description of the lab (TOML)")
    example(parser, "wirt lab check shop.toml")


def run(args: argparse.Namespace) -> int:
    """Report every problem of a description, with its line; make nothing."""
    from wirt.spec.lab import check

    lab, problems = check(read(args.file), file=args.file)
    if args.json:
        print_json(
            [{"line": p.line, "key": p.key, "problem": p.problem, "hint": p.hint} for p in problems]
        )
    for problem in problems if not args.json else ():
        hint = f" ({problem.hint})" if problem.hint else ""
        print(printable(f"{problem}{hint}"))
    if lab is not None and not args.json:
        print(f"{args.file}: a good description of {lab.name}, {len(lab.machines)} machines")
    return SpecError.exit_code if problems else 0
