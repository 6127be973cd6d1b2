"""wirt lab up"""

from __future__ import annotations

import argparse
import os

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say
from wirt.errors import NotFound
from wirt.units import parse_duration


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="description of the lab (TOML)")
    parser.add_argument("--name", default="", help="another name than the description has")
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="for guests to answer")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the guests")
    example(parser, "wirt lab up shop.toml", "wirt lab up shop.toml --name shop2 --no-wait")


def run(args: argparse.Namespace) -> int:
    """Make and start the machines and wires of a lab."""
    from wirt.vm.context import Context
    from wirt.vm.lab.up import bring_up
    from wirt.vm.lab.view import view

    context = Context(say=say)
    timeout = 0.0 if args.no_wait else parse_duration(args.timeout)
    path = os.path.abspath(args.file)
    lab = bring_up(context, read(args.file), file=path, name=args.name, timeout=timeout)
    if args.json:
        print_json(view(context, lab.name))
        return 0
    print(f"{lab.name}: up, {len(lab.machines)} machines")
    first = next(iter(lab.machines))
    print(f"  wirt lab exec {lab.name} {first} -- COMMAND; wirt lab down {lab.name}")
    return 0


def read(path: str) -> str:
    """Return the text of a description. Raises NotFound."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NotFound(f"{path} is not a text: {error}") from error
