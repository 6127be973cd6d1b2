"""wirt check"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable
from wirt.errors import NotFound, SpecError, UsageError, WrongState


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="a machine description (TOML), or with --can, "
                        "a machine")  # fmt: skip
    parser.add_argument(
        "--can", default="", metavar="ACTION,…",
        help="fork, snapshot, migrate: say what of machine VM stands in the way",
    )  # fmt: skip
    example(parser, "wirt check web.toml", "wirt check web --can fork,snapshot")


def run(args: argparse.Namespace) -> int:
    """Report every problem of a description, with its line; or what a machine cannot do."""
    if args.can:
        return _can(args.file, args.can.split(","), as_json=args.json)
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


def _can(name: str, actions: list[str], *, as_json: bool) -> int:
    from wirt.store.machines import find
    from wirt.vm.context import Context
    from wirt.vm.description import load_spec
    from wirt.vm.forking.forkable import ACTIONS, problems

    paths = find(Context().home, name)
    machine = load_spec(paths)
    unknown = [action for action in actions if action not in ACTIONS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no action", hint=f"--can {','.join(ACTIONS)}")
    found = {action: problems(paths, machine, action) for action in ACTIONS if action in actions}
    if as_json:
        print_json(found)
    for action, obstacles in found.items() if not as_json else ():
        print(f"{action}: {'no' if obstacles else 'yes'}")
        for problem in obstacles:
            print(printable(f"  {problem.device} ({problem.cure})"))
    return WrongState.exit_code if any(found.values()) else 0
