"""wirt start"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, each, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser, many=True)
    parser.add_argument("--paused", action="store_true", help="do not let the vCPUs run yet")
    parser.add_argument("--wait", action="store_true", help="return when the guest answers")
    parser.add_argument("--timeout", default="5m", metavar="TIME", help="of --wait (5m)")
    example(parser, "wirt start web", "wirt start --wait web db")


def run(args: argparse.Namespace) -> int:
    """Start machines; say with which accelerator and why."""
    from wirt.units import parse_duration
    from wirt.vm import state
    from wirt.vm.context import Context
    from wirt.vm.start import start
    from wirt.vm.wait import wait_for_guest

    context = Context(say=say)
    timeout = parse_duration(args.timeout)

    def act(name: str) -> None:
        fresh = start(context, name, paused=args.paused)
        if args.wait:
            wait_for_guest(context, name, timeout=timeout)
        run = state.look(context.home.vm(name), ask=False).record.run
        facts = {
            "name": name,
            "started": fresh,
            "accelerator": run.accelerator if run else "",
            "reason": run.accelerator_reason if run else "",
            "forwards": run.forwards if run else (),
        }
        if args.json:
            print_json(facts)
        else:
            word = "started" if fresh else "was running already"
            print(f"{name}: {word}, {facts['accelerator']} ({facts['reason']})")

    return each(args.names, act, args)
