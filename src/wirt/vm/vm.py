"""A machine as an object: the use cases of ``wirt.vm`` for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from wirt.errors import GuestError
from wirt.spec.machine import Machine
from wirt.store.machines import find
from wirt.vm import create as creating
from wirt.vm import logs, oneshot, state
from wirt.vm.context import Context
from wirt.vm.copy import copy_in, copy_out
from wirt.vm.create import Wish
from wirt.vm.description import load_spec
from wirt.vm.diff import Difference, diff
from wirt.vm.execute import Order, execute
from wirt.vm.forking.fork import fork, names_for
from wirt.vm.forking.spawn import Wish as Spawn
from wirt.vm.keep import Kept, keep
from wirt.vm.listing import list_machines
from wirt.vm.medium import Changed, eject, insert
from wirt.vm.remove import remove, rename
from wirt.vm.restore import Restored, restore, undo
from wirt.vm.screen import screenshot
from wirt.vm.snapshot import Row, Taken, list_snapshots, remove_snapshot, snapshot
from wirt.vm.source import resolve_or_build
from wirt.vm.start import start
from wirt.vm.stop import DEFAULT_SECONDS, pause, resume, stop
from wirt.vm.wait import wait_for_guest, wait_for_stop

BOOT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in a guest ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Vm:
    """A machine by its name. Holds no connection: every call looks anew.

    Errors are those of ``wirt.errors``; times are seconds.
    """

    name: str
    context: Context = field(default_factory=Context, repr=False)

    @property
    def status(self) -> str:
        """``stopped``, ``starting``, ``running``, ``paused`` … Raises NotFound."""
        return state.look(find(self.context.home, self.name)).status

    @property
    def machine(self) -> Machine:
        """The description, as machine.toml has it now."""
        return load_spec(find(self.context.home, self.name))

    @property
    def accelerator(self) -> tuple[str, str]:
        """``kvm`` or ``tcg``, and the reason. Raises WrongState for one that is down."""
        life = state.require_running(find(self.context.home, self.name)).record.run
        return (life.accelerator, life.accelerator_reason) if life else ("", "")

    @property
    def forwards(self) -> dict[int, int]:
        """Guest port → host port, of the TCP forwards that are open now."""
        life = state.require_running(find(self.context.home, self.name)).record.run
        return {
            guest: host
            for protocol, host, guest in (life.forwards if life else ())
            if protocol == "tcp"
        }

    def start(self, *, paused: bool = False) -> bool:
        """Start; False if it ran already."""
        return start(self.context, self.name, paused=paused)

    def wait(self, *, timeout: float = BOOT_SECONDS) -> str:
        """Return when the guest answers, by ``helper`` or ``agent``."""
        return wait_for_guest(self.context, self.name, timeout=timeout)

    def wait_stopped(self, *, timeout: float) -> None:
        """Return when the machine is down."""
        wait_for_stop(self.context, self.name, timeout=timeout)

    def stop(self, *, timeout: float = DEFAULT_SECONDS, force: bool = False) -> bool:
        """Ask the guest to power off, then see that it does; False if it was down."""
        return stop(self.context, self.name, timeout=timeout, force=force)

    def pause(self) -> None:
        """Stop the vCPUs."""
        pause(self.context, self.name)

    def resume(self) -> None:
        """Let the vCPUs run again."""
        resume(self.context, self.name)

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
        check: bool = True,
    ) -> Result:
        """Run a command in the guest. With ``check``, a failure raises GuestError."""
        out, err = bytearray(), bytearray()
        order = Order(
            argv, env=env or {}, cwd=cwd, user=user, stdin=stdin,
            stdout=out.extend, stderr=err.extend, timeout=timeout,
        )  # fmt: skip
        code = execute(self.context, self.name, order)
        result = Result(tuple(argv), code, bytes(out), bytes(err))
        if check and code != 0:
            words = err.decode(errors="replace").strip().splitlines()
            raise GuestError(
                f"{argv[0]} ended with {code} in {self.name}: {words[-1] if words else 'no words'}"
            )
        return result

    def copy_in(self, source: str, target: str) -> None:
        """Copy a file or directory of the host into the guest."""
        copy_in(self.context, self.name, source, target)

    def copy_out(self, source: str, target: str) -> None:
        """Copy a file or directory of the guest to the host."""
        copy_out(self.context, self.name, source, target)

    def screenshot(self, target: str) -> None:
        """Save the guest's screen as PNG."""
        screenshot(self.context, self.name, target)

    def console_log(self) -> bytes:
        """Return what the guest printed, as far as the bounded log keeps it."""
        return b"".join(logs.read(self.context, self.name))

    def fork(
        self, name: str = "", *, same_identity: bool = False, keep_process: bool = False
    ) -> Vm:
        """Make a running copy of this running machine, copy-on-write; this one goes on.

        The copy is a machine of its own name, random numbers and addresses, unless
        ``same_identity``. With ``keep_process`` this one stays in its QEMU: open connections
        and running commands live on. ``wirt.vm.forking.fork.fork`` tells what it cost. Raises
        WrongState for a device that cannot be forked, before anything is touched.
        """
        new = name or names_for(self.context, self.name, 1)[0]
        wish = Spawn(same_identity=same_identity)
        fork(self.context, self.name, [new], wish=wish, keep_process=keep_process)
        return replace(self, name=new)

    def forks(
        self, count: int, *, same_identity: bool = False, keep_process: bool = False
    ) -> list[Vm]:
        """Make ``count`` running copies as ``fork`` does, of one moment; all or none of them.

        They are named after this machine: ``web-1``, ``web-2`` …
        """
        names = names_for(self.context, self.name, count)
        wish = Spawn(same_identity=same_identity)
        fork(
            self.context, self.name, names,
            wish=wish, keep_process=keep_process, all_or_nothing=True,
        )  # fmt: skip
        return [replace(self, name=name) for name in names]

    def snapshot(self, name: str) -> Taken:
        """Keep the machine as it is now under ``name``; it goes on.

        With its memory if it is up, else its disks. The result tells how many seconds it stood
        still (``pause``) and what is kept takes, in bytes (``on_disk``). Raises AlreadyExists,
        NoSpace, and WrongState for a device that cannot be frozen, before anything is touched.
        """
        return snapshot(self.context, self.name, name)

    def snapshots(self) -> list[Row]:
        """Return the snapshots, oldest first: sizes in bytes, ``created`` in Unix seconds."""
        return list_snapshots(self.context, self.name)

    def remove_snapshot(self, name: str) -> tuple[str, ...]:
        """Remove a snapshot; machines that stand on it stay. Raises NotFound.

        Returns them, and states as ``state ID``: the files of the snapshot stay as long.
        """
        return remove_snapshot(self.context, self.name, name)

    def restore(self, name: str, *, discard: bool = False) -> Restored:
        """Bring this machine back to a snapshot: memory, disks and description.

        What it is now is kept as the snapshot ``replaced`` (``Restored.kept``), unless
        ``discard``. Raises NotFound, WrongState, NoSpace, MissingDependency (the snapshot is of
        another QEMU), QemuError; then the machine is as before.
        """
        return restore(self.context, self.name, name, discard=discard)

    def restore_to(self, name: str, new: str) -> Vm:
        """Make the machine ``new`` of a snapshot, with an identity of its own; this one stays.

        It runs if this one did when the snapshot was made. Raises as ``restore``, and
        AlreadyExists.
        """
        restore(self.context, self.name, name, to=new)
        return replace(self, name=new)

    def undo(self, *, discard: bool = False) -> Restored:
        """Bring this machine back to its newest snapshot, but for ``replaced``; see ``restore``."""
        return undo(self.context, self.name, discard=discard)

    def diff(self, other: Vm | str, *, files: bool = True) -> Difference:
        """Compare the disks with those of another machine, ``VM:SNAPSHOT`` or a template.

        Sizes and offsets are bytes; memory is not compared. ``files`` False reads no file
        system. Raises NotFound, ImageError, Busy (a guest that never stops writing).
        """
        name = other.name if isinstance(other, Vm) else other
        return diff(self.context, self.name, name, files=files)

    def keep(self, snapshot: str = "", *, alone: bool = False) -> Kept:
        """Make this machine, or a snapshot of it, independent of the states below it.

        It may run. It still stands on the guest image that it was made from, unless ``alone``.
        Sizes are bytes. Raises NotFound, NoSpace, WrongState, ImageError, QemuError; then all
        is as before.
        """
        name = f"{self.name}:{snapshot}" if snapshot else self.name
        return keep(self.context, name, alone=alone)

    def insert(
        self, image: str, *, drive: str = "", image_format: str = "", force: bool = False
    ) -> Changed:
        """Put an image into a CD or floppy drive, in place of what is in it; also while it runs.

        ``drive`` may be left out where it is clear. ``force`` takes a disc from a guest that
        has mounted it. Raises NotFound, UsageError, ImageError, WrongState, QemuError.
        """
        return insert(
            self.context, self.name, image, drive=drive, image_format=image_format, force=force
        )

    def eject(self, *, drive: str = "", force: bool = False) -> Changed:
        """Empty a drive. Raises NotFound, UsageError, WrongState, QemuError."""
        return eject(self.context, self.name, drive=drive, force=force)

    def rename(self, new: str) -> Vm:
        """Give a machine that is down another name."""
        rename(self.context, self.name, new)
        return replace(self, name=new)

    def remove(self, *, force: bool = False) -> None:
        """Remove the machine with its disks; ``force`` also while it runs."""
        remove(self.context, self.name, force=force)


def machines(context: Context | None = None) -> list[Vm]:
    """Return every machine of the home, sorted by name."""
    context = context or Context()
    return [Vm(row.name, context) for row in list_machines(context)]


def create(
    name: str,
    image: str = "",
    *,
    image_format: str = "",
    own_disk: bool = False,
    disk_size: int = 0,
    cdrom: str = "",
    context: Context | None = None,
    **settings: Any,
) -> Vm:
    """Make a machine from an image without starting it.

    ``settings`` are those of machine.toml: ``memory="2G"``, ``cpu={"vcpus": 2}``.
    """
    context = context or Context()
    source = resolve_or_build(context, image, image_format=image_format) if image else None
    wish = Wish(settings=settings, own_disk=own_disk, disk_size=disk_size, cdrom=cdrom)
    creating.create(context, name, source, wish)
    return Vm(name, context)


@contextmanager
def run(
    image: str,
    *,
    image_format: str = "",
    timeout: float = BOOT_SECONDS,
    context: Context | None = None,
    **settings: Any,
) -> Iterator[Vm]:
    """Yield a running machine whose guest answers; it is removed when the block ends."""
    context = context or Context()
    source = resolve_or_build(context, image, image_format=image_format)
    with oneshot.temporary(context, source, Wish(settings=settings), timeout=timeout) as made:
        yield Vm(made.name, context)
