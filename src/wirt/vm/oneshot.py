"""``wirt run``: from an image to a guest that answers, and machines that live for a command."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from msgspec.structs import replace

from wirt.catalog.image import Kind, StoredImage
from wirt.errors import (
    HostError,
    MissingDependency,
    NoSpace,
    NotFound,
    QemuError,
    Timeout,
    WirtError,
    WrongState,
)
from wirt.host.process_id import ProcessId
from wirt.store.layout import Home
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.store.states import State
from wirt.store.templates import making, remove_template
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.forking.spawn import Spawned, nothing, spawn_from
from wirt.vm.forking.spawn import Wish as SpawnWish
from wirt.vm.pool import PREFIX, claim, refill_behind
from wirt.vm.remove import remove
from wirt.vm.session import HelperPort
from wirt.vm.source import Source
from wirt.vm.start import start
from wirt.vm.template import Sought, find_warm, make_warm, seek

_POLL_SECONDS = 0.2
_SCREENLESS: dict[str, object] = {"video": {"model": "none"}, "displays": []}
_CLOSED: dict[str, object] = {"hotplug": False}


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
        from wirt.vm.wait import wait_for_guest

        context.say(f"waiting for {name} to answer")
        wait_for_guest(context, name, timeout=timeout)


class OneShot(msgspec.Struct):
    """A machine that lives for a command, and the port to its helper where that is open."""

    name: str
    port: HelperPort | None = None


def for_command(source: Source | None, wish: Wish) -> Wish:
    """Return the wish for a machine that lives for a command.

    Nobody looks at its screen, and nobody plugs into it. Only an image that wirt built is sure
    to boot so. Who asks for a screen has it.
    """
    if not isinstance(source, StoredImage) or source.record.kind is not Kind.BUILT:
        return wish
    screen = {} if _SCREENLESS.keys() & wish.settings.keys() else _SCREENLESS
    return replace(wish, settings={**_CLOSED, **screen, **wish.settings})


@contextlib.contextmanager
def temporary(
    context: Context,
    source: Source,
    wish: Wish,
    *,
    timeout: float,
    cold: bool = False,
    keep_port: bool = False,
    meanwhile: Callable[[], None] = nothing,
) -> Iterator[OneShot]:
    """Yield a running machine that is removed at the end, whatever happens.

    It is one that waits in a pool, or a fork of a template where one fits; else it boots, and
    becomes one. ``cold`` does without. If this process is killed, the next one that makes a
    machine removes it. ``keep_port`` leaves the port open by which a fork got its identity.
    ``meanwhile`` is called when a fork's QEMU is starting, which takes a moment.
    """
    remove_orphans(context)
    made = OneShot(f"{PREFIX}{os.urandom(4).hex()}")
    birth = SpawnWish(temporary=True, reboots=False, keep_port=keep_port)
    spawn = partial(spawn_from, context, wish=birth, meanwhile=meanwhile)
    sought = None if cold else seek(context, source, wish)
    waiting = claim(context, sought.fingerprint) if sought is not None else None
    try:
        if waiting is not None:
            context.say(f"taken from the pool: {waiting}")
            made.name = waiting
        elif sought is None:
            bring_up(context, made.name, source, replace(wish, temporary=True), timeout=timeout)
        else:
            _warm_up(context, made, sought, wish, timeout, spawn)
        yield made
    finally:
        if made.port is not None:
            made.port.close()
        if made.name in machine_names(context.home):
            remove(context, made.name, force=True)
        if sought is not None:
            refill_behind(context, sought.fingerprint)


def ensure_warm(context: Context, source: Source, wish: Wish, *, timeout: float) -> Sought:
    """Return the template for this source; it is made if there is none. Raises WrongState."""
    sought = seek(context, source, wish)
    if sought is None:
        raise WrongState(
            "these machines always boot: there can be no template, and so no pool",
            hint="a built image, without published ports; with KVM also --set forkable=on",
        )
    if find_warm(context, sought) is None:
        with temporary(context, source, wish, timeout=timeout):
            pass
    return sought


def _warm_up(
    context: Context,
    made: OneShot,
    sought: Sought,
    wish: Wish,
    timeout: float,
    spawn: Callable[[State, str], Spawned],
) -> None:
    """Fork the template; the first who needs it makes it, others wait for that."""
    deadline = time.monotonic() + timeout
    while not _forked(context, made, sought, spawn):
        with making(context.home, sought.fingerprint) as ours:
            if ours:
                temporary_wish = replace(wish, temporary=True)
                bring_up(context, made.name, sought.image, temporary_wish, timeout=timeout)
                make_warm(context, sought, made.name)
                return
        if time.monotonic() > deadline:
            raise Timeout(
                f"another wirt command has been making the template for {timeout:.0f} s",
                hint="wirt run --cold does without it",
            )
        time.sleep(_POLL_SECONDS)


def _forked(
    context: Context, made: OneShot, sought: Sought, spawn: Callable[[State, str], Spawned]
) -> bool:
    state = find_warm(context, sought)
    if state is None:
        return False
    try:
        spawned = spawn(state, made.name)
    except NotFound:
        return False  # removed just now
    except NoSpace:
        raise
    except (MissingDependency, HostError, QemuError, WrongState) as error:
        context.say(f"the template does not serve: {error}")
        with contextlib.suppress(NotFound):
            remove_template(context.home, sought.fingerprint)
        return False
    made.port = spawned.port
    context.say(f"forked from template {sought.fingerprint} in {spawned.running:.2f} s")
    return True


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
