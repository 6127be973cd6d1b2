"""Changing the description of a machine; what is running takes it up at its next start."""

from __future__ import annotations

from typing import Any

import msgspec

from wirt.errors import AlreadyExists, UsageError
from wirt.spec import toml
from wirt.spec.assign import assign, parse_key
from wirt.spec.machine import Machine
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import locked, read_spec
from wirt.store.record import read_record, write_record
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.description import summarise


def set_values(context: Context, name: str, assignments: dict[str, str]) -> bool:
    """Set ``key`` → text for each; all or none. True if the machine must restart for it.

    Comments and order of machine.toml stay. Raises UsageError, SpecError.
    """
    with locked(context.home, name, waiting=context.say) as paths:
        text = assigned(read_spec(paths), assignments)
        replace_locked(paths, text)
        return state.look(paths, ask=False).is_up


def assigned(text: str, assignments: dict[str, str]) -> str:
    """Return a description with ``key`` → text set; comments and order stay. Raises UsageError."""
    import tomlkit

    document = tomlkit.parse(text)
    for key, value in assignments.items():
        if parse_key(key)[0] in {"name", "uuid"}:
            raise UsageError(f"{key} is the machine's identity", hint="wirt rename OLD NEW")
        plain: dict[str, Any] = document.unwrap()
        assign(plain, key, value)
        _copy(document, plain, parse_key(key))
    return tomlkit.dumps(document)


def _copy(document: Any, plain: Any, path: tuple[str | int, ...]) -> None:
    """Carry the one value at ``path`` over, from the tables that exist already downwards."""
    for part in path[:-1]:
        if isinstance(part, str) and part not in document:
            document[part] = plain[part]
            return
        document, plain = document[part], plain[part]
    last = path[-1]
    if isinstance(last, int) and last == len(document):
        document.append(plain[last])
    else:
        document[last] = plain[last]


def read(context: Context, name: str) -> str:
    """Return the description as text, for an editor."""
    from wirt.store.machines import find

    return read_spec(find(context.home, name))


def replace(context: Context, name: str, text: str, *, expected: str) -> bool:
    """Put ``text`` in place of ``expected``. True if the machine must restart for it.

    Raises SpecError, and AlreadyExists if somebody else changed it meanwhile.
    """
    with locked(context.home, name, waiting=context.say) as paths:
        if read_spec(paths) != expected:
            raise AlreadyExists(
                f"{name} was changed by somebody else while you edited",
                hint="your text was kept: see above; edit again",
            )
        replace_locked(paths, text)
        return state.look(paths, ask=False).is_up


def replace_locked(paths: VmPaths, text: str) -> Machine:
    """Check and store a description; the caller holds the lock. Raises SpecError."""
    machine = toml.load(text, file=paths.spec)
    write_file(paths.spec, text.encode())
    record = read_record(paths.record)
    summary = summarise(paths, machine)
    write_record(paths.record, msgspec.structs.replace(record, summary=summary))
    return machine
