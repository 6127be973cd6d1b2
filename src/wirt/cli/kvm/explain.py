"""What each option of an old line meant, what it is today, and the new line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from wirt.cli.output import print_json, printable
from wirt.qemu.legacy.note import Note
from wirt.qemu.render import shell_line
from wirt.vm.context import Context
from wirt.vm.oldline import OldLine, understand

_COLOURS = {"same": "32", "translated": "36", "dropped": "33", "refused": "31"}
_KEYS = ("option", "value", "status", "removed_in", "today", "why")
_WIDTH = 34
REFUSED = 1


def explain(words: Sequence[str], *, as_json: bool) -> int:
    """Print the explanation; the code is 1 for a line that is refused."""
    line = understand(Context(), words, strict=False)
    line.display.release()
    if as_json:
        print_json(as_tree(line))
    else:
        _print(line, colour=sys.stdout.isatty())
    return REFUSED if line.translation.refused else 0


def as_tree(line: OldLine) -> dict[str, Any]:
    """Return the explanation for programs."""
    import msgspec

    translation = line.translation
    machine = translation.machine
    return {
        "machine": msgspec.to_builtins(machine) if machine else None,
        "argv": line.argv() if not translation.refused else [],
        "notes": [
            {key: getattr(note, key) for key in _KEYS}
            for note in translation.notes
        ],
    }  # fmt: skip


def _print(line: OldLine, *, colour: bool) -> None:
    for note in line.translation.notes:
        print("\n".join(_lines(note, colour=colour)))
    for warning in line.translation.warnings:
        print(_paint(f"note: {printable(warning)}", "33", colour=colour))
    if not line.translation.refused:
        print()
        print(shell_line(line.argv()))


def _lines(note: Note, *, colour: bool) -> list[str]:
    option = printable(f"{note.option} {note.value}".strip()) or "the line"
    shown = f"{option:<{_WIDTH}} " if len(option) <= _WIDTH else f"{option}\n{'':<{_WIDTH}} "
    head = shown + _paint(f"{note.status:<11}", _COLOURS[note.status], colour=colour)
    out = [head + note.meaning + _era(note)]
    if note.today and note.today != note.option:
        word = "try" if note.status == "refused" else "today"
        out.append(f"{'':<{_WIDTH}} {word}: {printable(note.today)}")
    if note.why:
        out.append(f"{'':<{_WIDTH}} {printable(note.why)}")
    return out


def _era(note: Note) -> str:
    if not note.since:
        return ""
    until = f", gone in {note.removed_in}" if note.removed_in else ""
    return f" (since {note.since}{until})"


def _paint(text: str, code: str, *, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
