"""wirt switch mend"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say, warn


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt switch mend")


def run(args: argparse.Namespace) -> int:
    """Start switches and cables that were killed, and plug the cards of running machines in."""
    from wirt.vm.context import Context
    from wirt.vm.network.mend import mend

    done = mend(Context(say=say))
    if args.json:
        print_json(done)
    else:
        for what, names in (
            ("started", done.switches), ("plugged in", done.cards), ("laid", done.cables)
        ):  # fmt: skip
            for name in names:
                print(f"{name}: {what}")
        if not (done.switches or done.cards or done.cables or done.failed):
            print("nothing was broken")
    for text in done.failed:
        warn(text)
    return 1 if done.failed else 0
