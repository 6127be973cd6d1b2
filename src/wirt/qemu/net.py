"""Network cards and what is behind them."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.qapi.value import Argument, QapiObject, device, netdev
from wirt.qemu.board import Board
from wirt.spec.nic import Backend, Forward, Nic, Unplugged, User

_DRIVERS = {"virtio": "virtio-net-pci", "usb": "usb-net"}
_NO_PCI = {"ne2k_isa", "usb"}


def nic_id(nic: Nic, index: int) -> str:
    """Return the identifier of the card."""
    return nic.id or f"nic{index}"


def nic_arguments(
    nics: Sequence[Nic], boot_indexes: Sequence[int | None], board: Board
) -> list[Argument]:
    """Return backends, hubs and cards of all nics."""
    arguments: list[Argument] = []
    for index, (nic, boot_index) in enumerate(zip(nics, boot_indexes, strict=True)):
        arguments += [netdev(value) for value in backend_values(nic, index)]
        arguments.append(device(card(nic, index, boot_index, board)))
    return arguments


def backend_values(nic: Nic, index: int) -> list[QapiObject]:
    """Return the backend of a card as ``netdev_add`` takes it; with a hub, its ports too."""
    name = nic_id(nic, index)
    value = backend_value(nic.backend, f"{name}-net")
    if nic.hub is None:
        return [value] if value else []
    port: QapiObject = {"type": "hubport", "id": f"{name}-hub", "hubid": nic.hub}
    if value is None:
        return [port]
    uplink: QapiObject = {
        "type": "hubport",
        "id": f"{name}-uplink",
        "hubid": nic.hub,
        "netdev": f"{name}-net",
    }
    return [value, uplink, port]


def backend_value(backend: Backend, name: str) -> QapiObject | None:
    """Return a backend as ``netdev_add`` takes it; None for an unplugged card."""
    match backend:
        case User():
            return _user(backend, name)
        case Unplugged():
            return None


def _user(user: User, name: str) -> QapiObject:
    value: QapiObject = {"type": "user", "id": name}
    texts = {
        "net": user.network,
        "host": user.host,
        "dns": user.dns,
        "dhcpstart": user.dhcp_start,
        "hostname": user.hostname,
        "domainname": user.domain,
        "tftp": user.tftp,
        "bootfile": user.bootfile,
        "smb": user.smb,
    }
    value.update({key: text for key, text in texts.items() if text})
    if user.restrict:
        value["restrict"] = True
    if user.forwards:
        value["hostfwd"] = [{"str": forward_text(forward)} for forward in user.forwards]
    if user.guest_forwards:
        value["guestfwd"] = [{"str": text} for text in user.guest_forwards]
    return value


def forward_text(forward: Forward) -> str:
    """Return a forward as ``hostfwd`` writes it."""
    host = f"[{forward.host_address}]" if ":" in forward.host_address else forward.host_address
    ends = f"{host}:{forward.host_port}-{forward.guest_address}:{forward.guest_port}"
    return f"{forward.protocol}:{ends}"


def card(nic: Nic, index: int, boot_index: int | None, board: Board) -> QapiObject:
    """Return the card as ``device_add`` takes it."""
    name = nic_id(nic, index)
    value: QapiObject = {"driver": _DRIVERS.get(nic.model, nic.model), "id": name}
    if nic.model == "virtio":
        value.update(board.pluggable())
    elif nic.model not in _NO_PCI:
        value.update(board.slot())
    elif nic.model == "usb":
        value["bus"] = "usb.0"
    if nic.hub is not None:
        value["netdev"] = f"{name}-hub"
    elif not isinstance(nic.backend, Unplugged):
        value["netdev"] = f"{name}-net"
    if nic.mac:
        value["mac"] = nic.mac
    if boot_index is not None:
        value["bootindex"] = boot_index
    elif nic.model == "virtio":
        value["romfile"] = ""  # no network boot wanted: spare the option ROM's time
    return value
