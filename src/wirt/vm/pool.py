"""Pools: paused forks of a template that wait for ``wirt run IMAGE -- COMMAND``.

Whoever takes one makes it a temporary machine of its own and lets it run: only then it gets its
identity, as every fork that was made paused. A process that ends by itself fills the pool up
again when the command is done; see ``docs/adr/0008-pools.md``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from wirt.errors import NotFound, UsageError, WirtError
from wirt.host.failpoint import failpoint
from wirt.host.process import detach, spawn
from wirt.host.process_id import ProcessId
from wirt.store import pools as store
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held, try_lock
from wirt.store.machines import machine_names
from wirt.store.pools import Pool, changing, filling
from wirt.store.record import Record, read_record, write_record
from wirt.store.states import find_state
from wirt.store.templates import read_template, touch
from wirt.vm.context import Context
from wirt.vm.family import private_memory
from wirt.vm.forking.spawn import Wish
from wirt.vm.remove import remove
from wirt.vm.stop import resume
from wirt.vm.template import Sought

PREFIX = "run-"
"""Of the names of machines that live for one command."""
MOST = 1000


class Row(msgspec.Struct, frozen=True):
    """A pool as it is listed. ``ram``: bytes that its machines alone have."""

    fingerprint: str
    image: str
    size: int
    ready: int
    ram: int


def set_pool(context: Context, sought: Sought, size: int) -> Row:
    """Keep ``size`` machines of a template ready; 0 removes the pool.

    A pool of an older template for the same image and settings goes. Raises UsageError,
    NotFound (the template is gone), and what ``spawn_from`` raises.
    """
    if not 0 <= size <= MOST:
        raise UsageError(f"a pool of {size} machines cannot be", hint=f"from 0 to {MOST}")
    for other in store.pools(context.home):
        if other.kind == sought.kind and other.fingerprint != sought.fingerprint:
            _resize(context, other, 0)
    image = sought.image.record.name
    pool = Pool(fingerprint=sought.fingerprint, kind=sought.kind, image=image, size=size)
    _resize(context, pool, size)
    return _row(context, pool)


def _resize(context: Context, pool: Pool, size: int) -> None:
    with changing(context.home, pool.fingerprint):
        if size:
            store.write_pool(context.home, pool)
            _fill(context, pool)
        else:
            store.remove_pool(context.home, pool.fingerprint)
            _shrink(context, pool, 0)


def list_pools(context: Context) -> list[Row]:
    """Return all pools."""
    return [_row(context, pool) for pool in store.pools(context.home)]


def _row(context: Context, pool: Pool) -> Row:
    records = [record for _, record in _members(context, pool.fingerprint) if _is_ready(record)]
    ram = sum(private_memory(record.run) for record in records if record.run is not None)
    return Row(pool.fingerprint, pool.image, pool.size, len(records), ram)


def _members(context: Context, fingerprint: str) -> Iterator[tuple[VmPaths, Record]]:
    for name in machine_names(context.home):
        if not name.startswith(PREFIX):
            continue
        paths = context.home.vm(name)
        with contextlib.suppress(WirtError):
            record = read_record(paths.record)
            if record.pool == fingerprint and not record.unborn:
                yield paths, record


def _is_ready(record: Record) -> bool:
    run = record.run
    return run is not None and run.paused_on_request and run.process.alive()


def claim(context: Context, fingerprint: str) -> str | None:
    """Take a machine of the pool and let it run; None if there is none.

    It is a temporary machine of this process then.
    """
    if not os.path.exists(context.home.pool(fingerprint)):
        return None
    for paths, _ in _members(context, fingerprint):
        if not _taken(paths, fingerprint):
            continue
        failpoint("claimed")
        try:
            resume(context, paths.name)
        except WirtError as error:
            context.say(f"a machine of the pool does not serve: {error}")
            with contextlib.suppress(WirtError):
                remove(context, paths.name, force=True)
            continue
        touch(context.home, fingerprint)
        return paths.name
    return None


def _taken(paths: VmPaths, fingerprint: str) -> bool:
    """Make a machine this process's own, unless somebody else was faster."""
    with contextlib.suppress(FileNotFoundError):
        lock = try_lock(paths.lock)
        if lock is None:
            return False
        try:
            record = read_record(paths.record)
            if record.pool != fingerprint or not _is_ready(record):
                return False
            me = ProcessId.of(os.getpid())
            record = msgspec.structs.replace(
                record, pool="", temporary=True, owner_pid=os.getpid(),
                owner_start_ticks=me.start_ticks if me else 0,
            )  # fmt: skip
            write_record(paths.record, record, durable=False)
        finally:
            os.close(lock)
        return True
    return False


def refill(context: Context, fingerprint: str) -> None:
    """Fill a pool up, unless somebody does already. Raises what ``spawn_from`` raises."""
    with filling(context.home, fingerprint) as ours, contextlib.suppress(NotFound):
        if ours:
            _fill(context, store.read_pool(context.home, fingerprint))


def refill_behind(context: Context, fingerprint: str) -> None:
    """Let a process of its own fill the pool up; it ends when that is done."""
    if not os.path.exists(context.home.pool(fingerprint)):
        return
    process = spawn(
        [sys.executable, "-P", "-m", "wirt", "pool", "--refill", fingerprint],
        stdout=subprocess.DEVNULL,  # a reader of ours must not wait for its end
        stderr=subprocess.DEVNULL,
        env={"WIRT_HOME": context.home.root},
        new_session=True,
        cwd="/",
    )
    detach(process)


def _fill(context: Context, pool: Pool) -> None:
    ready = _shrink(context, pool, pool.size)
    if ready >= pool.size:
        return
    from wirt.vm.forking.fork import spawn_many

    state = find_state(context.home, read_template(context.home, pool.fingerprint).state)
    names = [f"{PREFIX}{os.urandom(4).hex()}" for _ in range(pool.size - ready)]
    wish = Wish(paused=True, reboots=False, pool=pool.fingerprint)
    spawn_many(context, state, names, wish=wish)


def _shrink(context: Context, pool: Pool, size: int) -> int:
    """Remove what is too much, and what did not survive; return how many are ready."""
    ready = 0
    for paths, record in list(_members(context, pool.fingerprint)):
        if _is_ready(record) and run_lock_is_held(paths.run_lock) and ready < size:
            ready += 1
        elif _taken(paths, pool.fingerprint) or not _is_ready(record):
            with contextlib.suppress(NotFound):
                remove(context, paths.name, force=True)
    return ready
