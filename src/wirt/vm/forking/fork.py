"""Forking: a running machine is frozen, goes on, and new machines go on beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import msgspec

from wirt.errors import AlreadyExists, UsageError, WirtError
from wirt.store.machines import check_name, machine_names
from wirt.store.states import State, collect, drop_memory, process_label, release, using
from wirt.vm.context import Context
from wirt.vm.forking.admission import admitted
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.spawn import AS_USUAL, Spawned, Wish, spawn_from
from wirt.vm.remove import remove

MOST = 10_000

Progress = Callable[[Spawned | WirtError], None]


def _nothing(_step: Spawned | WirtError) -> None:
    return


class ForkResult(msgspec.Struct, frozen=True):
    """What a fork made and cost. ``pause``: seconds that the source stood still."""

    source: str
    state: str
    method: str
    pause: float
    forks: tuple[Spawned, ...]
    failed: tuple[tuple[str, str], ...] = ()
    """Name and reason of each fork that did not come to life."""
    notes: tuple[str, ...] = ()


def fork(
    context: Context,
    name: str,
    new_names: Sequence[str],
    *,
    wish: Wish = AS_USUAL,
    keep_process: bool = False,
    all_or_nothing: bool = False,
    progress: Progress = _nothing,
) -> ForkResult:
    """Freeze ``name``, which goes on, and make the machines ``new_names`` of it.

    With ``all_or_nothing`` the first failure removes the others. Raises WrongState (a device
    that cannot be forked), AlreadyExists, and what ``spawn_from`` raises if no fork lives.
    """
    _check_names(context, new_names)
    frozen = freeze(context, name, keep_process=keep_process)
    try:
        forks, failed = spawn_many(
            context, frozen.state, new_names,
            wish=wish, all_or_nothing=all_or_nothing, progress=progress,
        )  # fmt: skip
    finally:
        give_up(context, frozen.state)
    return ForkResult(
        source=name,
        state=frozen.state.id,
        method=frozen.method,
        pause=frozen.pause,
        forks=tuple(forks),
        failed=tuple((fork_name, str(error)) for fork_name, error in failed),
        notes=frozen.notes,
    )


def give_up(context: Context, state: State) -> None:
    """Let go of a state that this process held; what stands on it keeps it."""
    release(state, process_label())
    if not collect(context.home, state.id):
        drop_memory(context.home, state.id)


def names_for(context: Context, name: str, count: int) -> list[str]:
    """Return ``count`` free names made of the source's: ``web-1``, ``web-2`` …"""
    if not 1 <= count <= MOST:
        raise UsageError(f"{count} forks cannot be made", hint=f"from 1 to {MOST}")
    taken = set(machine_names(context.home))
    stem = name[: 63 - len(f"-{MOST + len(taken)}")]
    numbered = (f"{stem}-{number}" for number in range(1, count + len(taken) + 1))
    return [one for one in numbered if one not in taken][:count]


def _check_names(context: Context, new_names: Sequence[str]) -> None:
    taken = set(machine_names(context.home))
    for index, new in enumerate(new_names):
        check_name(new)
        if new in taken or new in new_names[:index]:
            raise AlreadyExists(f"there is a machine {new!r} already", hint="choose another name")


def spawn_many(
    context: Context,
    state: State,
    names: Sequence[str],
    *,
    wish: Wish = AS_USUAL,
    all_or_nothing: bool = False,
    progress: Progress = _nothing,
) -> tuple[list[Spawned], list[tuple[str, WirtError]]]:
    """Make machines of a state, as many at a time as there are processors.

    Returns them, and the errors of those that failed. If all fail, or one does with
    ``all_or_nothing``, the error is raised and no machine stays.
    """
    made: list[Spawned] = []
    failed: list[tuple[str, WirtError]] = []

    def one(name: str) -> None:
        if failed and all_or_nothing:
            return
        try:
            with admitted(context.home):
                spawned = spawn_from(context, state, name, wish)
        except WirtError as error:
            failed.append((name, error))
            progress(error)
        else:
            made.append(spawned)
            progress(spawned)

    try:
        with using(context.home, state.id):
            _each(names, one)
        if failed and (all_or_nothing or not made):
            raise failed[0][1]
    except BaseException:
        if all_or_nothing or not made:
            _remove(context, made)
        raise
    return sorted(made, key=lambda spawned: names.index(spawned.name)), failed


def _each(names: Sequence[str], act: Callable[[str], None]) -> None:
    if len(names) == 1:
        act(names[0])
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        running = [pool.submit(act, name) for name in names]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
            for future in running:
                future.result()
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _remove(context: Context, made: list[Spawned]) -> None:
    for spawned in made:
        with contextlib.suppress(WirtError):
            remove(context, spawned.name, force=True)
