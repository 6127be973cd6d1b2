"""From cards and backends on vlans to network cards with their networks.

A vlan with one card and one backend is a cable. Everything else is a hub: several cards,
several backends. A backend of the spec belongs to a card; further ones on the hub are
QEMU's own words.
"""

from __future__ import annotations

from typing import Any

import msgspec

from wirt.qapi.value import QapiObject
from wirt.qemu.legacy.disks import _DEFAULT_IDS
from wirt.qemu.legacy.draft import Card, Draft, Wire
from wirt.qemu.legacy.note import Refused
from wirt.qemu.legacy.options.network import merged
from wirt.qemu.netdev import backend_value
from wirt.qemu.nic import OWN_HUBS, attachment, hub_of, nic_id
from wirt.qemu.runtime import Runtime
from wirt.spec.nic import Backend, Nic, Tap, Unplugged, User

_HUBS = 256
_FIRST_MAC = 0x525400123456


def nics(draft: Draft) -> tuple[tuple[Nic, ...], dict[str, QapiObject]]:
    """Return the cards, and for each TAP what QEMU is told of it (``Runtime.uplinks``)."""
    if not draft.networked and draft.defaults:
        draft.cards.append(Card(vlan=0))
        draft.wires.append(Wire(User(), vlan=0))
    _join_hubs(draft)
    _apply_common(draft)
    plan = _Plan(draft)
    for card in draft.cards:
        plan.add(card)
    for wire in draft.wires:
        plan.leave(wire)
    _write_dumps(draft, plan)
    return tuple(plan.nics), plan.uplinks


def default_model(draft: Draft) -> str:
    """KVM's own QEMU had the rtl8139, QEMU the e1000 since 0.11."""
    is_old_kvm = draft.program in {"kvm", "qemu-kvm"} and not draft.facts.modern
    return "rtl8139" if is_old_kvm else "e1000"


def _join_hubs(draft: Draft) -> None:
    """Newer lines name the ports of a hub: the same as a vlan, unless it is a card's own."""
    backends = {name: hub for hub, name in draft.hub_ports.values() if name}
    own = {hub: name for name, hub in backends.items() if hub >= OWN_HUBS}
    for card in draft.cards:
        if card.netdev in draft.hub_ports:
            hub = draft.hub_ports[card.netdev][0]
            card.netdev = own.get(hub, "")
            if hub < OWN_HUBS:
                card.vlan = hub
                draft.hubs.add(hub)
    for wire in draft.wires:
        if backends.get(wire.id, OWN_HUBS) < OWN_HUBS:
            wire.vlan = backends[wire.id]
            draft.hubs.add(wire.vlan)


def _apply_common(draft: Draft) -> None:
    """``-redir``, ``-tftp`` and their like: of all user networks, ports of the first."""
    users = [wire for wire in draft.wires if isinstance(wire.backend, User)]
    if not users and (draft.redirections or draft.user):
        draft.warnings.append("there is no user network: -redir, -tftp, -bootp, -smb do nothing")
    for place, wire in enumerate(users):
        if isinstance(wire.backend, User):
            wire.backend = merged(wire.backend, draft.user, [] if place else draft.redirections)


class _Plan:
    """Which card has which wire."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.nics: list[Nic] = []
        self.uplinks: dict[str, QapiObject] = {}
        self.used: set[int] = set()
        self.hubs = self._hub_numbers()
        self.ports: dict[int, str] = {}
        """vlan → a netdev on it, for dumps."""

    def _hub_numbers(self) -> dict[int, int]:
        vlans = sorted({c.vlan for c in self.draft.cards if c.vlan is not None}
                       | {w.vlan for w in self.draft.wires if w.vlan is not None})  # fmt: skip
        free = [number for number in range(_HUBS) if number not in vlans]
        return {vlan: vlan if vlan < _HUBS else free.pop() for vlan in vlans}

    def _on(self, vlan: int) -> tuple[list[Card], list[Wire]]:
        cards = [card for card in self.draft.cards if card.vlan == vlan and not card.netdev]
        return cards, [wire for wire in self.draft.wires if wire.vlan == vlan]

    def add(self, card: Card) -> None:
        """Make a card with its network."""
        index = len(self.nics)
        wire, hub = self._network(card)
        if wire is not None and wire.words:
            self._by_words(wire, card)
            return
        nic = Nic(
            model=card.model or default_model(self.draft),  # type: ignore[arg-type]
            mac=card.mac or (_mac(index) if card.gives_mac else ""),
            id=_identifier(card.id, self.nics),
            backend=self._backend(wire),
            hub=hub,
            address=card.address,
            boot_index=card.boot_index,
        )
        if isinstance(nic.backend, Tap) and wire is not None:
            self.uplinks[f"{nic_id(nic, index)}-net"] = wire.uplink
        if wire is not None and wire.id:
            self.draft.renamed[wire.id] = attachment(nic_id(nic, index), hub_of(nic, index))
        self.nics.append(nic)
        self._remember(card, nic, index)

    def _remember(self, card: Card, nic: Nic, index: int) -> None:
        if card.vlan is not None:
            self.ports.setdefault(card.vlan, attachment(nic_id(nic, index), hub_of(nic, index)))

    def _network(self, card: Card) -> tuple[Wire | None, int | None]:
        if card.netdev:
            wire = next((w for w in self.draft.wires if w.id == card.netdev), None)
            if wire is None:
                raise Refused(f"there is no -netdev of id {card.netdev[:40]}")
            self.used.add(id(wire))
            return wire, None
        if card.vlan is None:
            return None, None
        cards, wires = self._on(card.vlan)
        is_hub = len(cards) > 1 or len(wires) > 1 or card.vlan in self.draft.hubs
        if not wires and not is_hub:
            self.draft.warnings.append(f"vlan {card.vlan} is not connected to host network")
        free = [wire for wire in wires if id(wire) not in self.used]
        wire = free[0] if free and (not is_hub or card is cards[0]) else None
        if wire is not None:
            self.used.add(id(wire))
        return wire, self.hubs[card.vlan] if is_hub else None

    @staticmethod
    def _backend(wire: Wire | None) -> Backend:
        return wire.backend if wire is not None and wire.backend is not None else Unplugged()

    def _by_words(self, wire: Wire, card: Card) -> None:
        """A network that only QEMU's words can say takes its card along."""
        name = self.draft.fresh("oldnet")
        self.draft.early += ["-netdev", _netdev_words(wire, name)]
        model = card.model or default_model(self.draft)
        driver = {"virtio": "virtio-net-pci", "usb": "usb-net"}.get(model, model)
        mac = card.mac or _mac(len(self.nics))
        self.draft.args += ["-device", f"driver={driver},netdev={name},mac={mac}"]

    def leave(self, wire: Wire) -> None:
        """A backend without a card of its own goes to QEMU as words."""
        if id(wire) in self.used:
            return
        name = wire.id if wire.vlan is None and wire.id else self.draft.fresh("oldnet")
        self.draft.early += ["-netdev", _netdev_words(wire, name)]
        if wire.vlan is None:
            return
        cards, _ = self._on(wire.vlan)
        if not cards:
            self.draft.warnings.append(f"vlan {wire.vlan} with no nics")
        port: QapiObject = {
            "type": "hubport", "id": f"{name}-hub", "hubid": self.hubs[wire.vlan], "netdev": name,
        }  # fmt: skip
        self.ports.setdefault(wire.vlan, f"{name}-hub")
        self.draft.early += ["-netdev", msgspec.json.encode(port).decode()]


def _netdev_words(wire: Wire, name: str) -> str:
    value: QapiObject | None
    if wire.words:
        value = {**dict(wire.words), "id": name}
        return ",".join(f"{key}={str(text).replace(',', ',,')}" for key, text in value.items())
    if wire.uplink:
        value = {**wire.uplink, "id": name}
    else:
        runtime = Runtime("tcg", "", str)
        value = backend_value(wire.backend or Unplugged(), name, runtime)
    return msgspec.json.encode(value).decode()


def _mac(index: int) -> str:
    number = _FIRST_MAC + index
    return ":".join(f"{number >> shift & 0xFF:02x}" for shift in range(40, -8, -8))


def _identifier(name: str, others: list[Nic]) -> str:
    stem = name.rstrip("0123456789")
    if (stem in _DEFAULT_IDS and stem != name) or any(nic.id == name for nic in others):
        return ""
    return name


def _write_dumps(draft: Draft, plan: _Plan) -> None:
    for vlan, file, most in draft.dumps:
        netdev = plan.ports.get(vlan)
        if netdev is None:
            draft.warnings.append(f"-net dump: there is nothing on vlan {vlan}")
            continue
        words: dict[str, Any] = {"id": draft.fresh("dump"), "netdev": netdev, "file": file,
                                 "maxlen": most}  # fmt: skip
        text = ",".join(f"{key}={str(value).replace(',', ',,')}" for key, value in words.items())
        draft.args += ["-object", f"filter-dump,{text}"]
