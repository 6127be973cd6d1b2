"""``wirt run``: from an image to a guest that answers, and machines that live for a command."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import replace

from wirt.errors import WirtError
from wirt.host.process_id import ProcessId
from wirt.store.layout import Home
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.remove import remove
from wirt.vm.source import Source
from wirt.vm.start import start
from wirt.vm.wait import wait_for_guest

PREFIX = "run-"


def bring_up(
    context: Context, name: str, source: Source, wish: Wish, *, timeout: float | None
) -> None:
    """Create and start a machine, and wait until its guest answers (None: do not wait).

    A machine that could not be started is removed; one that does not answer stays, so that
    its log can be read.
    """
    create(context, name, source, wish)
    try:
        start(context, name)
    except BaseException:
        with contextlib.suppress(WirtError):
            remove(context, name, force=True)
        raise
    if timeout is not None:
        context.say(f"waiting for {name} to answer")
        wait_for_guest(context, name, timeout=timeout)


@contextlib.contextmanager
def temporary(context: Context, source: Source, wish: Wish, *, timeout: float) -> Iterator[str]:
    """Yield the name of a running machine that is removed at the end, whatever happens.

    If this process is killed, the next one that makes a machine removes it.
    """
    remove_orphans(context)
    name = f"{PREFIX}{secrets.token_hex(4)}"
    try:
        bring_up(context, name, source, replace(wish, temporary=True), timeout=timeout)
        yield name
    finally:
        if name in machine_names(context.home):
            remove(context, name, force=True)


def orphans(home: Home) -> list[str]:
    """Return the temporary machines whose process is gone."""
    found = []
    for name in machine_names(home):
        if not name.startswith(PREFIX):
            continue
        with contextlib.suppress(WirtError):
            record = read_record(home.vm(name).record)
            owner = ProcessId(record.owner_pid, record.owner_start_ticks)
            if record.temporary and not owner.alive():
                found.append(name)
    return found


def remove_orphans(context: Context) -> None:
    """Remove what killed ``wirt run IMAGE -- COMMAND`` processes left."""
    for name in orphans(context.home):
        with contextlib.suppress(WirtError):
            remove(context, name, force=True)
