"""wirt cp"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say
from wirt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="PATH here, or VM:PATH in a guest")
    parser.add_argument("target", metavar="TARGET", help="likewise; one of the two is in a guest")
    example(parser, "wirt cp site.tar web:/srv/", "wirt cp web:/var/log/dpkg.log .")


def run(args: argparse.Namespace) -> int:
    """Copy files and directories between host and guest."""
    from wirt.vm.context import Context
    from wirt.vm.copy import copy_in, copy_out

    source_vm, source = _place(args.source)
    target_vm, target = _place(args.target)
    context = Context(say=say)
    if source_vm and target_vm:
        raise UsageError("one of the two must be on this host", hint="copy in two steps")
    if target_vm:
        copy_in(context, target_vm, source, target or "/root/")
    elif source_vm:
        copy_out(context, source_vm, source, target)
    else:
        raise UsageError("neither is in a guest", hint="write VM:PATH, for example web:/root/")
    if args.json:
        print_json({"source": args.source, "target": args.target})
    return 0


def _place(text: str) -> tuple[str, str]:
    """Split VM:PATH; a path with a slash before the colon is the host's."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else ("", text)
