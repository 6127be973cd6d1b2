"""wirt show"""

from __future__ import annotations

import argparse
from typing import Any

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, printable, say
from wirt.qemu.render import shell_line
from wirt.vm.context import Context
from wirt.vm.inspect import argv, inspect


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("--argv", action="store_true", help="QEMU's line, quoted for a shell")
    parser.add_argument("--toml", action="store_true", help="the description as it is stored")
    example(parser, "wirt show web", "wirt show --argv web", "wirt show --json web")


def run(args: argparse.Namespace) -> int:
    """Show one machine."""
    context = Context(say=say)
    if args.argv:
        line = argv(context, args.name)
        if args.json:
            print_json(line)
        else:
            print(shell_line(line))
        return 0
    if args.toml:
        from wirt.vm.edit import read

        print(read(context, args.name), end="")
        return 0
    facts = inspect(context, args.name)
    if args.json:
        print_json(facts)
    else:
        _print(facts)
    return 0


def _print(facts: dict[str, Any]) -> None:
    machine = facts.pop("machine")
    confinement = facts.pop("confinement", None)
    accelerator = facts.pop("accelerator", None)
    served = facts.pop("served", ())
    for key, value in facts.items():
        if value and key != "started":
            print(printable(f"{key:<12} {value}"))
    if accelerator:
        print(printable(f"{'accelerator':<12} {accelerator['name']}: {accelerator['reason']}"))
    for image in served:
        access = "read-only" if image["read_only"] else "read-write"
        print(printable(f"{'served':<12} {image['path']}, {access}: {image['why']}"))
    if confinement:
        print(f"{'confined by':<12} {_confinement(confinement)}")
    for key, value in machine.items():
        if key != "name":
            print(printable(f"  {key} = {value}"))


def _confinement(facts: dict[str, Any]) -> str:
    words = [f"uid {facts['uid']}", f"seccomp {facts['seccomp']}"]
    words.append("no new privileges" if facts["no_new_privileges"] else "may gain privileges")
    empty = int(facts["capabilities"], 16) == 0
    words.append("no capabilities" if empty else f"capabilities {facts['capabilities']}")
    return ", ".join(words)
