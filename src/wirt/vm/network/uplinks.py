"""The host's end of each card: what is made before QEMU starts, or before a card is plugged.

TAPs and ports of switches are descriptors, so they vanish with the QEMU that holds them: a
machine that ends, however it ends, leaves nothing on the host to clean up but a script to
run, a limit in nft, and its name at a DHCP server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from wirt.errors import HostError, MissingDependency, UsageError, WirtError
from wirt.host.process import run
from wirt.net import bridge, passt, rate
from wirt.net import switch as vde
from wirt.net.place import HERE, Place, stable_mac, tap, vde_port
from wirt.qapi.value import QapiObject
from wirt.qemu.nic import hub_of, nic_id
from wirt.spec.machine import Machine
from wirt.spec.nic import Network, Nic, Passt, Switch, Tap, User
from wirt.store import wires as store
from wirt.store.record import Wire
from wirt.vm.context import Context
from wirt.vm.network import bridges, switches
from wirt.vm.network.users import require_own_mac

_VHOST = "/dev/vhost-net"
_SCRIPT_SECONDS = 60.0
_LATER = "made-at-start"
_LONGEST_FRAME = 1 << 17
_MOST_FRAMES = 10_000


@dataclass(frozen=True, slots=True)
class Uplink:
    """What the host made for a card: descriptors, and the backend that names them."""

    fds: tuple[int, ...]
    value: Callable[[Sequence[str]], QapiObject]
    interface: str = ""
    """The TAP."""

    def close(self) -> None:
        """Give it up; QEMU has its own descriptors by now, or nobody shall have it."""
        for fd in self.fds:
            os.close(fd)


@dataclass(slots=True)
class Uplinks:
    """The host's ends of all cards of a machine that is about to start."""

    made: dict[str, Uplink] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)

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
            uplink = make_uplink(context, machine.name, nic, index)
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
    shown: dict[str, QapiObject] = {}
    for index, nic in enumerate(machine.nics):
        match nic.backend:
            case Tap():
                shown[f"{nic_id(nic, index)}-net"] = _tap_value(nic.backend, [_LATER])
            case Network():
                shown[f"{nic_id(nic, index)}-net"] = _tap_value(Tap(), [_LATER])
            case Switch():
                shown[f"{nic_id(nic, index)}-net"] = _frames_value(_LATER)
            case Passt():
                shown[f"{nic_id(nic, index)}-net"] = _stream_value(_LATER)
            case _:
                pass
    return shown


def make_uplink(
    context: Context, machine: str, nic: Nic, index: int, *, through_hub: bool = False
) -> Uplink | None:
    """Make the host's end of one card; None where QEMU makes it by itself."""
    require_own_mac(context, machine, nic.mac, nic.backend)
    match nic.backend:
        case Tap():
            return _tap(nic.backend, nic, through_hub=through_hub)
        case Network():
            return _network_tap(context, machine, nic.backend, nic, through_hub=through_hub)
        case Switch():
            return _switch_port(context, machine, nic.backend, nic_id(nic, index))
        case Passt():
            return _passt(nic.backend)
        case _:
            return None


def _tap(backend: Tap, nic: Nic, *, through_hub: bool) -> Uplink:
    if backend.bridge:
        bridge.require_bridge(HERE, backend.bridge)
    uplink = _make_tap(HERE, backend.interface or "wtap%d", backend, nic, through_hub=through_hub)
    try:
        if backend.bridge:
            bridge.join(HERE, uplink.interface, backend.bridge)
        _run_script(backend.script, uplink.interface)
    except BaseException:
        uplink.close()
        raise
    return uplink


def _network_tap(
    context: Context, machine: str, backend: Network, nic: Nic, *, through_hub: bool
) -> Uplink:
    record = bridges.ensure_bridge(context, backend.name)
    place = bridges.place_of(record)
    uplink = _make_tap(place, "wtap%d", Tap(), nic, through_hub=through_hub)
    try:
        bridge.join(place, uplink.interface, record.interface)
        bridges.introduce(context, backend.name, machine, nic.mac)
    except BaseException:
        uplink.close()
        raise
    return uplink


def _make_tap(place: Place, name: str, backend: Tap, nic: Nic, *, through_hub: bool) -> Uplink:
    vhost = [] if through_hub else _vhost(backend)
    try:
        # Offloads do not pass a hub, and a TAP that has them would lose packets there.
        offload = backend.offload and not through_hub
        fd, interface = tap(place, name, stable_mac("card", nic.mac), offload=offload)
    except BaseException:
        _close(vhost)
        raise
    uplink = Uplink((fd, *vhost), lambda names: _tap_value(backend, names), interface)
    try:
        rate.forget(place, interface)
        if nic.rate is not None:
            limits = nic.rate
            rate.limit(place, interface, to_guest=limits.to_guest, from_guest=limits.from_guest)
    except BaseException:
        uplink.close()
        raise
    return uplink


def _tap_value(backend: Tap, names: Sequence[str]) -> QapiObject:
    value: QapiObject = {"type": "tap", "fd": names[0], "vhost": len(names) > 1}
    if len(names) > 1:
        value["vhostfd"] = names[1]
    if backend.send_buffer:
        value["sndbuf"] = backend.send_buffer
    return value


def _vhost(backend: Tap) -> list[int]:
    """Open vhost-net for QEMU: without the device, QEMU 7.2 aborts when it is asked for."""
    if backend.vhost == "off":
        return []
    try:
        return [os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)]
    except OSError as error:
        if backend.vhost == "auto":
            return []
        why = "is missing" if error.errno == errno.ENOENT else f"is refused: {error.strerror}"
        raise MissingDependency(
            f"{_VHOST} {why}", hint='modprobe vhost_net, or set vhost = "auto"'
        ) from error


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _run_script(program: str, interface: str) -> None:
    if not program:
        return
    try:
        run([program, interface], timeout=_SCRIPT_SECONDS)
    except WirtError as error:
        raise HostError(f"the script of {interface} failed: {error.message}") from error


def _switch_port(context: Context, machine: str, backend: Switch, card: str) -> Uplink:
    with switches.running(context, backend.name) as (record, paths):
        sockets = switches.sockets_of(paths)
        port = vde.free_port(sockets, backend.vlan) if backend.vlan else 0
        fds = vde_port(
            sockets.control,
            paths.file(f"plug{os.getpid()}"),
            port=port,
            text=plug_text(machine, card),
            uid=record.uid,
        )
    return Uplink(fds, lambda names: _frames_value(names[0]))


def plug_text(machine: str, card: str) -> str:
    """Return by what a switch knows the plug of a card."""
    return f"wirt {machine} {card}"


def _frames_value(fd: str) -> QapiObject:
    return {"type": "dgram", "local": {"type": "fd", "str": fd}}


def _passt(backend: Passt) -> Uplink:
    fd = passt.run_passt(backend.forwards)
    return Uplink((fd,), lambda names: _stream_value(names[0]))


def _stream_value(fd: str) -> QapiObject:
    return {"type": "stream", "server": False, "addr": {"type": "fd", "str": fd}}


def release_all(context: Context, machine: str, wires: Sequence[Wire]) -> None:
    """Clean up behind all cards of a machine that is down."""
    for wire in wires:
        release(context, machine, wire)


def release(context: Context, machine: str, wire: Wire) -> None:
    """Clean up behind a card that is gone: what its descriptors did not take with them."""
    backend = wire.nic.backend
    with contextlib.suppress(WirtError):
        if isinstance(backend, Network):
            bridges.forget(context, backend.name, wire.nic.mac)
        _release_interface(context, wire)
    if isinstance(backend, Tap) and backend.down_script:
        try:
            _run_script(backend.down_script, wire.interface)
        except WirtError as error:
            context.say(f"{machine}: {error}")


def release_interfaces(context: Context, wires: Sequence[Wire]) -> None:
    """The same behind a QEMU that another one has taken a machine over from."""
    for wire in wires:
        with contextlib.suppress(WirtError):
            _release_interface(context, wire)


def _release_interface(context: Context, wire: Wire) -> None:
    if wire.nic.rate is not None and wire.interface:
        rate.forget(_place_of(context, wire.nic), wire.interface)


def _place_of(context: Context, nic: Nic) -> Place:
    if not isinstance(nic.backend, Network):
        return HERE
    paths = store.find(context.home, "bridge", nic.backend.name)
    return bridges.place_of(store.read(paths, store.BridgeRecord))


def set_rate(context: Context, wire: Wire) -> None:
    """Apply the limits of a card that is plugged in. Raises UsageError without a TAP."""
    limits = wire.nic.rate
    if not wire.interface:
        raise UsageError("limits need a tap", hint="plug it into a network: wirt nic plug")
    rate.limit(
        _place_of(context, wire.nic),
        wire.interface,
        to_guest=limits.to_guest if limits else 0,
        from_guest=limits.from_guest if limits else 0,
    )
