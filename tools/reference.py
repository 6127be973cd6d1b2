"""Write the parts of the reference that the code knows itself: verbs, settings, exit codes."""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module
from pathlib import Path

from wirt import errors
from wirt.cli.arguments import make_parser
from wirt.cli.table import verbs
from wirt.qemu.legacy.line import DISK
from wirt.qemu.legacy.options import OPTIONS
from wirt.spec.machine import Machine
from wirt.spec.settings import settings
from wirt.units import format_size_exact


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = make_parser(verb, verbs()[verb])
    import_module(f"wirt.cli.commands.{verb.replace('-', '_').replace(' ', '.')}").configure(parser)
    return parser


def verb_section(verb: str) -> str:
    parser = parser_of(verb)
    lines = [f"## wirt {verb}", "", (parser.description or "").strip(), ""]
    lines += ["```text", parser.format_usage().removeprefix("usage: ").strip(), "```", ""]
    for group in parser._action_groups:  # noqa: SLF001 - argparse has no other list of them
        for action in group._group_actions:  # noqa: SLF001 - likewise
            if isinstance(action, argparse._HelpAction) or group.title == "for every verb":  # noqa: SLF001
                continue
            names = ", ".join(f"`{name}`" for name in action.option_strings)
            shown = names or f"`{action.metavar or action.dest}`"
            value = action.metavar if action.option_strings and action.nargs != 0 else None
            label = f"{shown} `{value}`" if isinstance(value, str) else shown
            lines += [label, f": {escape(action.help or 'as its name says')}", ""]
    if parser.epilog:
        lines += ["```console", *(f"$ {line.strip()}" for line in parser.epilog.split("\n")[1:])]
        lines += ["```", ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    return text.replace("<", "\\<").replace("|", "\\|").replace("$", "\\$").replace("*", "\\*")


def cli() -> str:
    lines = ["# Verbs", ""]
    lines += ["Every verb takes `--json`, `--quiet` and `--debug`.", ""]
    lines += [verb_section(verb) for verb in verbs()]
    return "\n".join(lines)


def settings_table() -> str:
    lines = ["# Settings of a machine", ""]
    lines += ["Keys of `machine.toml`, of `--set` and of `wirt set`; sizes as `512M` or `1.5G`."]
    lines += ["", "| key | value | default | meaning |", "|---|---|---|---|"]
    for setting in settings(Machine):
        default = setting.default
        if setting.unit == "bytes" and isinstance(default, int):
            default = format_size_exact(default)
        simple = isinstance(default, str | int) and not isinstance(default, bool)
        shown = f"`{default}`" if simple and default != "" else ""
        if isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        kind = setting.kind.replace("|", "\\|")
        lines.append(f"| `{setting.key}` | {kind} | {shown} | {escape(setting.description)} |")
    return "\n".join(lines) + "\n"


def exit_codes() -> str:
    lines = ["# Exit codes", "", "`wirt exec`, `wirt run -- COMMAND` and `wirt ssh` end with the "]
    lines += ["code of the command in the guest (128 and the number for a signal); else:", ""]
    lines += ["| code | error | meaning |", "|---|---|---|", "| 0 | | success |"]
    found = [
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.WirtError)
    ]
    for error in sorted(found, key=lambda one: (one.exit_code, one.__name__)):
        summary = (error.__doc__ or "").strip().split("\n")[0]
        lines.append(f"| {error.exit_code} | `{error.__name__}` | {escape(summary)} |")
    lines += ["| 1 | | `wirt img compare`: the images differ |"]
    lines += ["| 70 | | a defect in wirt itself |", "| 130 | | interrupted (Ctrl-C, SIGTERM) |"]
    return "\n".join(lines) + "\n"


_SHORT = {"keep": "the same", "process": "the same", "forget": "always so", "drop": "dropped"}


def old_options() -> str:
    lines = ["# Options of old lines", ""]
    lines += [
        "What `kvm` and `wirt explain` know, with the version that brought an option and the "
    ]
    lines += ["one that took it out (empty: it is still there). Versions are QEMU's, or `kvm-NN`. "]
    lines += ["Those up to 0.15 were read from the releases themselves, `0.8` being the oldest; "]
    lines += ["later ones from QEMU's documentation. `by 7.2`: 7.2 does not know it.", ""]
    lines += ["| option | since | gone in | meaning | today |", "|---|---|---|---|---|"]
    for option in sorted(OPTIONS, key=lambda one: one.name.lower()):
        name = "*DISK*" if option.name == DISK else f"`-{option.name}`"
        today = f"`{option.today}`" if option.today else _SHORT.get(option.act.__name__, "")
        if not today and not option.removed_in:
            today = "the same"
        if option.why:
            today = f"{today}: {escape(option.why)}" if today else escape(option.why)
        meaning = escape(option.meaning)
        lines.append(f"| {name} | {option.since} | {option.removed_in} | {meaning} | {today} |")
    return "\n".join(lines) + "\n"


PAGES = {
    "cli.md": cli,
    "settings.md": settings_table,
    "exit-codes.md": exit_codes,
    "old-options.md": old_options,
}


def main() -> int:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (target / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
