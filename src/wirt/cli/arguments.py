"""Arguments that verbs share, and flags made from the settings of a machine."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from wirt.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors like all others.

    ``later`` declares options that are not needed unless somebody uses or asks for one.
    """

    later: Callable[[], None] | None = None

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the arguments. Raises UsageError."""
        known = self._option_string_actions
        if any(word.startswith("-") and word not in known for word in words):
            self._complete()
        return self.parse_args(words)

    def format_help(self) -> str:
        self._complete()
        return super().format_help()

    def _complete(self) -> None:
        declare, self.later = self.later, None
        if declare is not None:
            declare()

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def make_parser(verb: str, text: str) -> Parser:
    """Return the parser of one verb with the options that every verb has."""
    parser = Parser(
        prog=f"wirt {verb}",
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    common = parser.add_argument_group("for every verb")
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def example(parser: argparse.ArgumentParser, *lines: str) -> None:
    """Show examples at the end of ``--help``."""
    parser.epilog = "examples:\n" + "\n".join(f"  {line}" for line in lines)


def add_machine(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Add the machine's name, or several."""
    if many:
        parser.add_argument("names", metavar="VM", nargs="+", help="name of a machine")
    else:
        parser.add_argument("name", metavar="VM", help="name of the machine")


def add_settings(parser: Parser) -> None:
    """Add a flag for every setting that declares one, ``--set`` for all others, and ``-p``."""
    parser.set_defaults(assignments=[], forwards=[], no_net=False)
    parser.later = lambda: _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from wirt.spec.machine import Machine
    from wirt.spec.settings import settings

    group = parser.add_argument_group("settings of the machine")
    for setting in settings(Machine):
        if not setting.flags:
            continue
        if setting.kind == "boolean":
            group.add_argument(
                *setting.flags, dest=f"set:{setting.key}", action="store_const", const="true",
                help=setting.description,
            )  # fmt: skip
        else:
            group.add_argument(
                *setting.flags, dest=f"set:{setting.key}", metavar=_metavar(setting.kind),
                help=setting.description,
            )  # fmt: skip
    group.add_argument(
        "--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE",
        help="any setting, as in machine.toml: --set rtc.base=localtime",
    )  # fmt: skip
    group.add_argument(
        "-p", "--publish", dest="forwards", action="append", default=[],
        metavar="[ADDRESS:]HOST:GUEST[/udp]", help="make a port of the guest reachable on the host",
    )  # fmt: skip
    group.add_argument("--no-net", action="store_true", help="no network card")


def _metavar(kind: str) -> str:
    return kind.upper() if kind in {"size", "number", "text"} else "VALUE"


def settings_tree(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the flags ask for, as a tree like machine.toml's."""
    from wirt.spec.assign import assign

    tree: dict[str, Any] = {}
    for key, value in vars(args).items():
        if key.startswith("set:") and value is not None:
            assign(tree, key.removeprefix("set:"), value)
    for assignment in args.assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r}: KEY=VALUE is expected")
        assign(tree, key.strip(), value)
    said = {"--set nics": "nics" in tree, "--no-net": args.no_net, "-p": bool(args.forwards)}
    if sum(said.values()) > 1:
        ways = " and ".join(way for way, used in said.items() if used)
        raise UsageError(f"{ways} all say which cards there are", hint="say it in one way")
    if args.no_net:
        tree["nics"] = []
    if args.forwards:
        forwards = [parse_forward(text) for text in args.forwards]
        tree["nics"] = [{"backend": {"type": "user", "forwards": forwards}}]
    return tree


_FORWARD = re.compile(
    r"(?:(?P<host_address>\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?"
    r"(?P<host>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?"
)


def parse_forward(text: str) -> dict[str, Any]:
    """Return a forward of ``8080:80``, ``127.0.0.1:8080:80/tcp`` or ``0:22`` (a free port)."""
    match = _FORWARD.fullmatch(text)
    if not match or max(int(match["host"]), int(match["guest"])) > 65535:
        raise UsageError(
            f"-p {text[:60]!r} is not a forward", hint="-p HOST:GUEST, for example -p 8080:80"
        )
    forward: dict[str, Any] = {
        "host_port": int(match["host"]),
        "guest_port": int(match["guest"]),
        "protocol": match["protocol"] or "tcp",
    }
    if match["host_address"]:
        forward["host_address"] = match["host_address"].strip("[]")
    return forward


def each(names: Iterable[str], act: Callable[[str], object], args: argparse.Namespace) -> int:
    """Run ``act`` for each name; go on after errors; return the first error's code.

    ``args`` say how errors are told.
    """
    from wirt.cli.output import print_error
    from wirt.errors import WirtError

    code = 0
    for name in names:
        try:
            act(name)
        except WirtError as error:
            if args.debug:
                raise
            print_error(error, as_json=args.json)
            code = code or error.exit_code
    return code


def each_told(args: argparse.Namespace, done: str, act: Callable[[str], object]) -> int:
    """Run ``act`` for each of ``args.names``, as ``each``, and tell what was ``done``.

    One line for each; with ``--json`` one object, in which ``done`` is the key to their names.
    """
    from wirt.cli.output import print_json

    names: list[str] = []

    def one(name: str) -> None:
        act(name)
        names.append(name)
        if not args.json:
            print(f"{name}: {done}")

    code = each(args.names, one, args)
    if args.json:
        print_json({done: names})
    return code
