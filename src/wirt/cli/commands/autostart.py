"""wirt autostart"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import each, example
from wirt.cli.output import print_json, say, warn


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--as", dest="form", choices=["systemd"], help="print a unit that does this at boot"
    )
    example(
        parser,
        "wirt set web autostart=true",
        "wirt autostart",
        "wirt autostart --as systemd > /etc/systemd/system/wirt-autostart.service",
    )


def run(args: argparse.Namespace) -> int:
    """Start what is marked: networks and switches made with --persist, then machines.

    Those that run stay as they are.
    """
    from wirt.vm.autostart import marked, systemd_unit
    from wirt.vm.context import Context
    from wirt.vm.network.mend import start_persistent
    from wirt.vm.start import start

    if args.form == "systemd":
        print(systemd_unit(), end="")
        return 0
    context = Context(say=say)
    for text in start_persistent(context).failed:
        warn(text)
    started: dict[str, bool] = {}

    def act(name: str) -> None:
        started[name] = start(context, name)
        if not args.json:
            print(f"{name}: {'started' if started[name] else 'was running already'}")

    code = each(marked(context), act, args)
    if args.json:
        print_json(started)
    return code
