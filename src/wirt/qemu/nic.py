"""Network cards, their cables (hub ports) and what is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wirt.qapi.value import Argument, QapiObject, device, netdev
from wirt.qemu.board import Board
from wirt.qemu.netdev import backend_value
from wirt.qemu.runtime import Runtime
from wirt.spec.nic import Nic, Unplugged

_DRIVERS = {"virtio": "virtio-net-pci", "usb": "usb-net"}
_PLUGGABLE = {"virtio", "e1000e", "vmxnet3"}
_NO_PCI = {"ne2k_isa", "usb"}


@dataclass(frozen=True, slots=True)
class NicValues:
    """A network card ready to be plugged, cold or hot: apply the parts in this order."""

    netdevs: tuple[QapiObject, ...]
    """``netdev_add``: backend and, on a hub, its ports."""
    device: QapiObject
    """``device_add``."""

    def arguments(self) -> list[Argument]:
        """Return the options for the start."""
        return [*map(netdev, self.netdevs), device(self.device)]


def nic_id(nic: Nic, index: int) -> str:
    """Return the identifier of the card."""
    return nic.id or f"nic{index}"


def nic_arguments(
    nics: Sequence[Nic], boot_indexes: Sequence[int | None], board: Board, runtime: Runtime
) -> list[Argument]:
    """Return backends, hubs and cards of all nics."""
    made: list[Argument] = []
    for index, (nic, boot_index) in enumerate(zip(nics, boot_indexes, strict=True)):
        place = card_place(nic, board)
        made += nic_values(nic, index, runtime, place, boot_index).arguments()
    return made


def nic_values(
    nic: Nic, index: int, runtime: Runtime, place: QapiObject, boot_index: int | None = None
) -> NicValues:
    """Return what QEMU is told of one card. ``place`` is its bus and address.

    The same values serve the start and hot-plug: there ``place`` is that of a free root
    port (``board.port_place``), and ``index`` one that no card of the machine has.
    """
    netdevs = backend_values(nic, index, runtime)
    return NicValues(tuple(netdevs), _card(nic, index, place, boot_index))


def backend_values(nic: Nic, index: int, runtime: Runtime) -> list[QapiObject]:
    """Return the backend of a card as ``netdev_add`` takes it; with a hub, its ports too."""
    name = nic_id(nic, index)
    value = backend_value(nic.backend, f"{name}-net", runtime)
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


def card_place(nic: Nic, board: Board) -> QapiObject:
    """Return bus and address for the card. Raises SpecError when there is no place left."""
    if nic.model == "usb":
        return board.usb()
    if nic.model in _NO_PCI:
        return {}
    if nic.address:
        return board.at(nic.address)
    return board.pluggable("nic") if nic.model in _PLUGGABLE else board.slot("nic")


def _card(nic: Nic, index: int, place: QapiObject, boot_index: int | None) -> QapiObject:
    name = nic_id(nic, index)
    value: QapiObject = {"driver": _DRIVERS.get(nic.model, nic.model), "id": name, **place}
    if nic.hub is not None:
        value["netdev"] = f"{name}-hub"
    elif not isinstance(nic.backend, Unplugged):
        value["netdev"] = f"{name}-net"
    if nic.mac:
        value["mac"] = nic.mac
    if boot_index is not None:
        value["bootindex"] = boot_index
    elif nic.model not in _NO_PCI:
        value["romfile"] = ""  # no network boot wanted: spare the option ROM's time and file
    return value
