"""All machines at a glance."""

from __future__ import annotations

import msgspec

from wirt.errors import NotFound, WirtError
from wirt.store.layout import VmPaths
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.store.states import states
from wirt.vm import state
from wirt.vm.context import Context

_AT_ONCE = 16
_GONE = "gone"


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One machine. Memory in bytes, start in Unix seconds."""

    name: str
    status: str
    memory: int = 0
    vcpus: int = 0
    image: str = ""
    accelerator: str = ""
    pid: int = 0
    started: float = 0.0
    forwards: tuple[tuple[str, int, int], ...] = ()
    uuid: str = ""
    autostart: bool = False
    note: str = ""


def list_machines(context: Context) -> list[Row]:
    """Return every machine, sorted by name; damaged ones say so in their note."""
    everything = [context.home.vm(name) for name in machine_names(context.home)]
    rows = [_row(paths, ask=False) for paths in everything]
    up = [index for index, row in enumerate(rows) if row.status == "running"]
    if up:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = pool.map(lambda index: _row(everything[index], ask=True), up)
            for index, row in zip(up, asked, strict=True):
                rows[index] = row
    return [row for row in rows if row.status != _GONE]


def _row(paths: VmPaths, *, ask: bool) -> Row:
    try:
        found = state.look(paths, ask=ask)
    except NotFound as error:
        return Row(paths.name, _GONE, note=str(error))
    except WirtError as error:
        return Row(paths.name, "damaged", note=str(error))
    summary = state.summary_of(paths, found.record)
    run = found.record.run if found.is_up else None
    return Row(
        name=paths.name,
        status=found.status,
        memory=summary.memory,
        vcpus=summary.vcpus,
        image=found.record.image,
        accelerator=run.accelerator if run else "",
        pid=run.pid if run else 0,
        started=run.started if run else 0.0,
        forwards=run.forwards if run else (),
        uuid=summary.uuid,
        autostart=summary.autostart,
        note=found.note,
    )


def machines_on(context: Context, image_id: str) -> list[str]:
    """Return the machines, and held states, whose disks are overlays of a guest image."""
    found = []
    for name in machine_names(context.home):
        try:
            record = read_record(context.home.vm(name).record)
        except WirtError:
            found.append(name)  # damaged: it may stand on any image
            continue
        if record.image_id == image_id:
            found.append(name)
    kept = states(context.home)
    return found + [f"state {one.id}" for one in kept if one.manifest.image_id == image_id]
