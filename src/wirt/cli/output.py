"""What a person or a program sees: results on standard output, the rest on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from wirt.errors import WirtError


def print_json(value: Any) -> None:
    """Print structs and plain data as JSON, indented when a person reads."""
    import msgspec

    data = msgspec.json.encode(value)
    if sys.stdout.isatty():
        data = msgspec.json.format(data, indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns. Cells are made harmless for terminals."""
    cells = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def printable(text: str) -> str:
    """Return ``text`` without anything a terminal would obey: guests choose some of it."""
    return "".join(char if char.isprintable() else "?" for char in text)


def say(text: str) -> None:
    """Tell a person what happens; silent when nobody watches."""
    if sys.stderr.isatty() and not os.environ.get("WIRT_QUIET"):
        print(f"· {printable(text)}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Tell what a program's log should keep too."""
    print(f"wirt: {printable(text)}", file=sys.stderr, flush=True)


def print_error(error: WirtError, *, as_json: bool) -> None:
    """Print an error: one line for what, one for what to do."""
    if as_json:
        import msgspec

        body = {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}
        print(msgspec.json.encode({"error": body}).decode(), file=sys.stderr)
        return
    print(f"wirt: {printable(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"  try: {printable(error.hint)}", file=sys.stderr)
