"""wirt fork"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, printable, say, warn
from wirt.errors import UsageError, WirtError
from wirt.vm.context import Context
from wirt.vm.forking.fork import ForkResult, fork, names_for
from wirt.vm.forking.spawn import Spawned, Wish


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("new", metavar="NEW", nargs="*", help="names of the forks (VM-1, VM-2 …)")
    parser.add_argument("--count", type=int, metavar="N", help="how many, named by wirt")
    parser.add_argument(
        "--keep-process", action="store_true",
        help="VM stays in its QEMU: its connections and running commands live on",
    )  # fmt: skip
    parser.add_argument(
        "--same-identity", action="store_true",
        help="keep UUID, host name, machine-id and addresses: for a closed lab",
    )  # fmt: skip
    parser.add_argument(
        "--all-or-nothing", action="store_true", help="one failure removes all forks of this call"
    )
    parser.add_argument("--paused", action="store_true", help="do not let the forks run yet")
    example(
        parser,
        "wirt fork web test",
        "wirt fork web --count 50 --all-or-nothing",
        "wirt fork db copy --keep-process",
    )


def run(args: argparse.Namespace) -> int:
    """Fork a running machine; say how long it stood still, and what could not be changed."""
    if args.new and args.count is not None:
        raise UsageError("names and --count exclude each other", hint="wirt fork web --count 3")
    context = Context(say=say)
    names = args.new or names_for(context, args.name, 1 if args.count is None else args.count)
    done: list[Spawned | WirtError] = []

    def progress(step: Spawned | WirtError) -> None:
        done.append(step)
        what = step.name if isinstance(step, Spawned) else str(step)
        say(f"{len(done)} of {len(names)}: {what}")

    result = fork(
        context,
        args.name,
        names,
        wish=Wish(same_identity=args.same_identity, paused=args.paused),
        keep_process=args.keep_process,
        all_or_nothing=args.all_or_nothing,
        progress=progress,
    )
    if args.json:
        print_json(result)
    else:
        _tell(result)
    for name, reason in result.failed:
        warn(f"{name}: {reason}")
    return 1 if result.failed else 0


def _tell(result: ForkResult) -> None:
    print(f"{result.source}: stood still for {result.pause * 1000:.0f} ms ({result.method})")
    for made in result.forks:
        print(f"{made.name}: runs after {made.running:.2f} s")
        for protocol, host, guest in made.forwards:
            print(f"  port {guest}/{protocol} of the guest is {host} on this host")
        for note in made.notes:
            print(f"  {note}")
        if made.identity.unchanged:
            print(printable(f"  not changed: {', '.join(made.identity.unchanged)}"))
