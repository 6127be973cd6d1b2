"""The host's ends of all cards of a machine.

How one is made is in ``host_end``, which knows every kind of network. It is imported where a
card needs it: most machines have only cards of the kind ``user``, which are QEMU's alone.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from wirt.errors import WirtError
from wirt.qapi.value import QapiObject
from wirt.qemu.nic import hub_of, nic_id
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic, Passt, User
from wirt.store.record import Wire
from wirt.vm.context import Context
from wirt.vm.network.uplink import Uplink

_LONGEST_FRAME = 1 << 17
_MOST_FRAMES = 10_000


class Uplinks(msgspec.Struct):
    """The host's ends of all cards of a machine that is about to start."""

    made: dict[str, Uplink] = msgspec.field(default_factory=dict)
    wires: list[Wire] = msgspec.field(default_factory=list)

    @property
    def fds(self) -> list[int]:
        return [fd for uplink in self.made.values() for fd in uplink.fds]

    @property
    def values(self) -> dict[str, QapiObject]:
        """Netdev id → backend, with the descriptors as QEMU inherits them."""
        return {name: link.value([str(fd) for fd in link.fds]) for name, link in self.made.items()}

    def drain(self) -> None:
        """Throw away the frames that have come so far, for a QEMU that did not run."""
        for uplink in self.made.values():
            _drain(uplink.fds[0])

    def close(self) -> None:
        for uplink in self.made.values():
            uplink.close()


def _drain(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    for _ in range(_MOST_FRAMES):
        if not poller.poll(0):
            return
        try:
            os.read(fd, _LONGEST_FRAME)
        except OSError:  # QEMU was quicker, or the switch is gone
            return


def make_uplinks(context: Context, machine: Machine, *, beside: bool = False) -> Uplinks:
    """Make the host's end of each card; all of them or none.

    ``beside`` those that a running QEMU of the same machine has. Raises NotFound, HostError,
    MissingDependency, Busy, AlreadyExists.
    """
    uplinks = Uplinks()
    try:
        for index, nic in enumerate(machine.nics):
            uplink = _make(context, machine.name, nic, index)
            if uplink is not None:
                uplinks.made[f"{nic_id(nic, index)}-net"] = uplink
            interface = uplink.interface if uplink else ""
            uplinks.wires.append(Wire(index, nic, interface, hub=hub_of(nic, index)))
    except BaseException:
        uplinks.close()
        if not beside:
            release_all(context, machine.name, uplinks.wires)
        raise
    return uplinks


def _make(context: Context, machine: str, nic: Nic, index: int) -> Uplink | None:
    if isinstance(nic.backend, User):
        return None
    from wirt.vm.network.host_end import make_uplink

    return make_uplink(context, machine, nic, index)


@contextlib.contextmanager
def uplinks_for(context: Context, machine: Machine) -> Iterator[Uplinks]:
    """Make the host's end of each card for a QEMU that the block starts.

    Raises what ``make_uplinks`` raises. If the block fails, nothing of them is left.
    """
    uplinks = make_uplinks(context, machine)
    try:
        yield uplinks
    except BaseException:
        release_all(context, machine.name, uplinks.wires)
        raise
    finally:
        uplinks.close()


def plain_wires(machine: Machine) -> tuple[Wire, ...]:
    """Return the cards of a machine as they are when the host makes nothing for them."""
    return tuple(Wire(index, nic, hub=hub_of(nic, index)) for index, nic in enumerate(machine.nics))


def open_forwards(nics: Iterable[Nic]) -> tuple[tuple[str, int, int], ...]:
    """Return protocol, host port and guest port of each forward of the cards."""
    return tuple(
        (forward.protocol, forward.host_port, forward.guest_port)
        for nic in nics
        if isinstance(nic.backend, User | Passt)
        for forward in nic.backend.forwards
    )


def planned(machine: Machine) -> dict[str, QapiObject]:
    """Return what stands for the uplinks in a command line that is only shown."""
    from wirt.vm.network import host_end

    shown = ((index, nic, host_end.planned(nic)) for index, nic in enumerate(machine.nics))
    return {f"{nic_id(nic, index)}-net": value for index, nic, value in shown if value}


def release_all(context: Context, machine: str, wires: Sequence[Wire]) -> None:
    """Clean up behind all cards of a machine that is down."""
    for wire in _of_the_host(wires):
        from wirt.vm.network.host_end import release

        release(context, machine, wire)


def release_interfaces(context: Context, wires: Sequence[Wire]) -> None:
    """The same behind a QEMU that another one has taken a machine over from."""
    for wire in _of_the_host(wires):
        from wirt.vm.network.host_end import release_interface

        with contextlib.suppress(WirtError):
            release_interface(context, wire)


def _of_the_host(wires: Sequence[Wire]) -> list[Wire]:
    return [wire for wire in wires if not isinstance(wire.nic.backend, User)]
