"""Machine descriptions as TOML: read with file, key and line; written with comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from wirt.errors import SpecError
from wirt.spec.decode import Problem, decode
from wirt.spec.machine import Machine
from wirt.spec.settings import settings
from wirt.spec.validate import problems_of
from wirt.units import format_size_exact

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]\[#]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\"'.-]+)\s*=")


def load(text: str, *, file: str = "") -> Machine:
    """Return the machine that ``text`` describes.

    Raises SpecError for the first problem; the hint counts the others.
    """
    machine, problems = check(text, file=file)
    if machine is None:
        first = problems[0]
        more = f"{len(problems) - 1} more: see `wirt check FILE`" if len(problems) > 1 else ""
        first.hint = "; ".join(part for part in (first.hint, more) if part)
        raise first
    return machine


def check(text: str, *, file: str = "") -> tuple[Machine | None, list[SpecError]]:
    """Return the machine, or None and every problem with its line."""
    tree, error = parse(text, file=file)
    if error is not None:
        return None, [error]
    machine, problems = from_tree(tree)
    return machine, [located(problem, text, file) for problem in problems]


def parse(text: str, *, file: str = "") -> tuple[dict[str, Any], SpecError | None]:
    """Return the tables of ``text``, or the error that it is no TOML."""
    import tomllib

    try:
        return tomllib.loads(text), None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        message = re.sub(r"\s*\(at .*\)$", "", str(error))
        return {}, SpecError(f"not TOML: {message}", file=file, line=line)


def from_tree(tree: object) -> tuple[Machine | None, list[Problem]]:
    """Decode and cross-check plain data (of TOML, JSON or flags)."""
    machine, problems = decode(tree, Machine)
    if machine is not None:
        problems = problems_of(machine)
    return (None if problems else machine), problems


def from_data(tree: object, *, file: str = "") -> Machine:
    """Like ``from_tree``, but raises SpecError for the first problem."""
    machine, problems = from_tree(tree)
    if machine is None:
        raise located(problems[0], "", file)
    return machine


def located(problem: Problem, text: str, file: str) -> SpecError:
    """Return the problem as an error that names the line of ``text``, if there is a text."""
    line = line_of(text, problem.path) if text else 0
    return SpecError(problem.message, key=problem.key, file=file, line=line, hint=problem.hint)


def line_of(text: str, path: tuple[str | int, ...]) -> int:
    """Return the line (from 1) of ``path``, or of the nearest table above it, or 0."""
    best, best_depth = 0, 0
    for line, here in _paths(text):
        depth = len(here)
        if depth > best_depth and path[:depth] == here:
            best, best_depth = line, depth
    return best


def _paths(text: str) -> Iterator[tuple[int, tuple[str | int, ...]]]:
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            table = _table_path(header[2], is_list=header[1] == "[[", counts=counts)
            yield number, table
            continue
        key = _KEY.match(line)
        if key:
            yield number, table + _split(key[1])


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _table_path(
    dotted: str, *, is_list: bool, counts: dict[tuple[str | int, ...], int]
) -> tuple[str | int, ...]:
    path: tuple[str | int, ...] = ()
    parts = _split(dotted)
    for position, part in enumerate(parts):
        path = (*path, part)
        if is_list and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def dump(machine: Machine, *, explained: bool = True) -> str:
    """Return TOML that ``load`` reads back to an equal machine, settings ``explained``.

    Without explanations it costs a tenth, for machines whose description nobody reads.
    """
    help_of = {setting.key: setting for setting in settings(Machine)} if explained else {}
    tree = msgspec.to_builtins(machine)
    lines = ["# A machine of wirt. `wirt edit` checks what you change; defaults are not listed."]
    lines += list(_table(tree, "", help_of))
    return "\n".join(lines) + "\n"


def _table(tree: dict[str, Any], prefix: str, help_of: dict[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in tree.items() if not _is_table(value)}
    for key, value in plain.items():
        yield _assignment(key, value, help_of.get(_generic(f"{prefix}{key}")))
    for key, value in tree.items():
        if key in plain:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from ("", f"[{name}]")
            yield from _table(value, f"{name}.", help_of)
        else:
            for item in value:
                yield from ("", f"[[{name}]]")
                yield from _table(item, f"{name}.", help_of)


def _is_table(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value)
    return isinstance(value, dict) or (is_list and isinstance(value[0], dict))


def _generic(key: str) -> str:
    return re.sub(r"\[\d+\]", "", key)


def _assignment(key: str, value: Any, known: Any) -> str:
    comment = f"  # {known.description}" if known else ""
    if known and known.unit == "bytes":
        value = format_size_exact(value)
    return f"{key} = {format_value(value)}{comment}"


def format_value(value: Any) -> str:
    """Return a TOML value: text, whole number, boolean or a list of these."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    # JSON's string escapes are a subset of TOML's, but for DEL.
    return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")
