"""wirt template rm"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each, example
from wirt.errors import UsageError
from wirt.store.templates import read_template, remove_template, template_names
from wirt.vm.context import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("templates", metavar="TEMPLATE", nargs="*", help="what to remove")
    parser.add_argument("--all", action="store_true", help="remove all templates")
    example(parser, "wirt template rm 3f2a", "wirt template rm --all")


def run(args: argparse.Namespace) -> int:
    """Remove warm images; machines that were forked from them stay."""
    context = Context()
    if bool(args.templates) == args.all:
        raise UsageError("name the templates, or say --all", hint="wirt template ls")

    def remove(name: str) -> None:
        fingerprint = name if args.all else read_template(context.home, name).fingerprint
        remove_template(context.home, fingerprint)
        if not args.json:
            print(f"{fingerprint}: removed")

    names = template_names(context.home) if args.all else args.templates
    return each(names, remove, args)
