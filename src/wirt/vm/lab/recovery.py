"""A lab whose machines stand still because the command that forked it was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from wirt.errors import WirtError
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.wires import LabRecord
from wirt.vm.context import Context
from wirt.vm.stop import resume


@contextmanager
def locked_lab(context: Context, name: str) -> Iterator[NetworkPaths]:
    """Hold the lock of a lab whose machines run as they should. Raises NotFound, Busy."""
    with wires.locked(context.home, "lab", name, waiting=context.say) as paths:
        record = wires.read(paths, LabRecord)
        if record.standing:
            context.say(f"{name} stood still since a command was killed: it goes on")
            for machine in record.machines:
                with contextlib.suppress(WirtError):
                    resume(context, machine)
            mark_standing(paths, standing=False)
        yield paths


def mark_standing(paths: NetworkPaths, *, standing: bool) -> None:
    """Write down that the machines are about to stand still, or run again."""
    record = wires.read(paths, LabRecord)
    wires.write(paths, msgspec.structs.replace(record, standing=standing))
