"""Network cards, their cables (hub ports) and what is behind them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from wirt.qapi.value import Argument, QapiObject, device, netdev
from wirt.qemu.board import Board
from wirt.qemu.netdev import backend_value
from wirt.qemu.runtime import Runtime
from wirt.spec.nic import Network, Nic, Tap

OWN_HUBS = 256
"""First number of the hubs that wirt makes, one for a card; those of descriptions are lower."""

_DRIVERS = {"virtio": "virtio-net-pci", "usb": "usb-net"}
_PLUGGABLE = {"virtio", "e1000e", "vmxnet3"}
_NO_PCI = {"ne2k_isa", "usb"}


class NicValues(msgspec.Struct, frozen=True):
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


def hub_of(nic: Nic, index: int) -> int | None:
    """Return the hub between a card and its backend; None: they are joined directly.

    A card that is joined directly never leaves its backend. With a hub in between, another
    cable can be plugged while the guest runs. A TAP has none, since no offloads pass a hub.
    """
    if nic.hub is None and isinstance(nic.backend, Tap | Network):
        return None
    return OWN_HUBS + index if nic.hub is None else nic.hub


def attachment(card: str, hub: int | None) -> str:
    """Return the netdev that a card itself is joined to: its end of the wire."""
    return f"{card}-net" if hub is None else f"{card}-hub"


def idle_port(card: str, hub: int) -> QapiObject:
    """Return a port of the card's hub that takes every frame and drops it.

    Without one, a frame that the guest sends while no cable is plugged in waits in QEMU, and
    the card with it: also when a cable is there again.
    """
    return {"type": "hubport", "id": f"{card}-idle", "hubid": hub}


def unplugged_links(nics: Sequence[Nic]) -> list[QapiObject]:
    """Return the arguments of ``set_link`` for cards that start without a carrier."""
    return [
        {"name": nic_id(nic, index), "up": False} for index, nic in enumerate(nics) if not nic.link
    ]


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
    """Return backend and hub of a card as ``netdev_add`` takes them."""
    hub = hub_of(nic, index)
    made = cable_values(nic, index, runtime, hub)
    if hub is not None:
        made.append({"type": "hubport", "id": attachment(nic_id(nic, index), hub), "hubid": hub})
    return made


def cable_values(nic: Nic, index: int, runtime: Runtime, hub: int | None) -> list[QapiObject]:
    """Return what a cable consists of: the backend and, on a hub, the port it leads to.

    Removed in reverse order and added anew, it is plugged into something else.
    """
    name = nic_id(nic, index)
    value = backend_value(nic.backend, f"{name}-net", runtime)
    if value is None or hub is None:
        return [value] if value else []
    port: QapiObject = {
        "type": "hubport",
        "id": f"{name}-uplink",
        "hubid": hub,
        "netdev": f"{name}-net",
    }
    return [value, port]


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
    value["netdev"] = attachment(name, hub_of(nic, index))
    if nic.mac:
        value["mac"] = nic.mac
    if boot_index is not None:
        value["bootindex"] = boot_index
    elif nic.model not in _NO_PCI:
        value["romfile"] = ""  # no network boot wanted: spare the option ROM's time and file
    return value
