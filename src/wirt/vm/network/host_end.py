"""The host's end of one card: what is made before QEMU starts, or before the card is plugged.

TAPs and ports of switches are descriptors, so they vanish with the QEMU that holds them: a
machine that ends, however it ends, leaves nothing on the host to clean up but a script to
run, a limit in nft, and its name at a DHCP server.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from wirt.errors import HostError, MissingDependency, UsageError, WirtError
from wirt.host.process import run
from wirt.net import bridge, passt, rate
from wirt.net import switch as vde
from wirt.net.place import HERE, Place, stable_mac, tap, vde_port
from wirt.qapi.value import QapiObject
from wirt.qemu.nic import nic_id
from wirt.spec.nic import Network, Nic, Passt, Switch, Tap
from wirt.store import wires as store
from wirt.store.record import Wire
from wirt.vm.context import Context
from wirt.vm.network import bridges, switches
from wirt.vm.network.uplink import Uplink
from wirt.vm.network.users import require_own_mac

_VHOST = "/dev/vhost-net"
_SCRIPT_SECONDS = 60.0
_LATER = "made-at-start"


def planned(nic: Nic) -> QapiObject | None:
    """Return what stands for the end of a card in a command line that is only shown."""
    match nic.backend:
        case Tap():
            return _tap_value(nic.backend, [_LATER])
        case Network():
            return _tap_value(Tap(), [_LATER])
        case Switch():
            return _frames_value(_LATER)
        case Passt():
            return _stream_value(_LATER)
        case _:
            return None


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


def release(context: Context, machine: str, wire: Wire) -> None:
    """Clean up behind a card that is gone: what its descriptors did not take with them."""
    backend = wire.nic.backend
    with contextlib.suppress(WirtError):
        if isinstance(backend, Network):
            bridges.forget(context, backend.name, wire.nic.mac)
        release_interface(context, wire)
    if isinstance(backend, Tap) and backend.down_script:
        try:
            _run_script(backend.down_script, wire.interface)
        except WirtError as error:
            context.say(f"{machine}: {error}")


def release_interface(context: Context, wire: Wire) -> None:
    """Forget the limits of a TAP. Raises WirtError."""
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
