"""wirt check"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable
from wirt.errors import NotFound, SpecError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="a machine description (TOML)")
    example(parser, "wirt check web.toml")


def run(args: argparse.Namespace) -> int:
    """Report every problem of a description, with its line."""
    from wirt.spec import toml

    try:
        with open(args.file, encoding="utf-8") as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{args.file} cannot be read: {error}") from error
    machine, problems = toml.check(text, file=args.file)
    if args.json:
        print_json(
            [{"line": p.line, "key": p.key, "problem": p.problem, "hint": p.hint} for p in problems]
        )
    for problem in problems if not args.json else ():
        hint = f" ({problem.hint})" if problem.hint else ""
        print(printable(f"{problem}{hint}"))
    if machine is not None and not args.json:
        print(f"{args.file}: a good description of {machine.name}")
    return SpecError.exit_code if problems else 0
