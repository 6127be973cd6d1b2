"""The map of all networks, as text and as SVG."""

from __future__ import annotations

import html
from collections.abc import Iterator

import msgspec

from wirt.net.cable import LocalEnd, parse_end
from wirt.units import format_size
from wirt.vm.network.bridges import BridgeFacts
from wirt.vm.network.cables import CableFacts
from wirt.vm.network.survey import Card, Machine, Survey
from wirt.vm.network.switches import SwitchFacts

_ROW, _LEFT, _RIGHT, _WIDTH, _BOX = 26, 20, 520, 940, 300
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.t{font-weight:bold}.d{fill:#777}"
    "rect{fill:#f4f6f8;stroke:#667;rx:6}rect.off{stroke-dasharray:5 4}"
    "path{fill:none;stroke:#468;stroke-width:1.6}path.off{stroke:#b55;stroke-dasharray:5 4}"
)


def text(found: Survey) -> list[str]:
    """Return the map as lines: each wire with what is on it, then cards on no shared wire."""
    lines: list[str] = []
    for switch in found.switches:
        lines += [_switch_line(switch), *_members(found, f"switch:{switch.name}", switch)]
        lines += [f"  ~ {_cable_line(cable)}" for cable in _cables_of(found, switch.name)]
    for network in found.bridges:
        lines += [_bridge_line(network), *_members(found, f"network:{network.name}", None)]
    shown = {f"switch:{one.name}" for one in found.switches}
    shown |= {f"network:{one.name}" for one in found.bridges}
    for machine, card in _cards(found):
        if card.on not in shown:
            lines.append(f"{_card_line(machine, card)} → {card.backend}")
    return lines or ["there are no networks and no machines"]


def _cards(found: Survey) -> Iterator[tuple[Machine, Card]]:
    return ((machine, card) for machine in found.machines for card in machine.cards)


def _switch_line(switch: SwitchFacts) -> str:
    uplink = f", uplink {switch.uplink}" if switch.uplink else ""
    return f"switch {switch.name} ({switch.status}{uplink})"


def _bridge_line(network: BridgeFacts) -> str:
    where = "private" if network.private else "host"
    bridge = f"{network.interface}, {network.address}"
    return f"network {network.name} ({network.status}, {where}, {bridge})"


def _cable_line(cable: CableFacts) -> str:
    return f"cable {cable.name}: {cable.a} ↔ {cable.b} ({cable.status})"


def _members(found: Survey, on: str, switch: SwitchFacts | None) -> Iterator[str]:
    for machine, card in _cards(found):
        if card.on == on:
            traffic = _traffic(switch, machine, card) if switch else ""
            yield f"  - {_card_line(machine, card)}{traffic}"


def _card_line(machine: Machine, card: Card) -> str:
    state = "" if machine.up else " (down)"
    link = "" if card.link else " link down"
    address = f" {card.address}" if card.address else ""
    return f"{machine.name}{state} {card.name} {card.mac or card.model}{address}{link}"


def _traffic(switch: SwitchFacts, machine: Machine, card: Card) -> str:
    plug = f"wirt {machine.name} {card.name}"
    for port in switch.ports:
        if plug in port.plugs:
            vlan = f", vlan {port.vlan}" if port.vlan else ""
            moved = f"{format_size(port.received_bytes)} out, {format_size(port.sent_bytes)} in"
            return f" [port {port.number}{vlan}: {moved}]"
    return ""


def _cables_of(found: Survey, switch: str) -> list[CableFacts]:
    return [cable for cable in found.cables if switch in _ends(cable)]


def _ends(cable: CableFacts) -> list[str]:
    ends = (parse_end(cable.a), parse_end(cable.b))
    return [end.switch for end in ends if isinstance(end, LocalEnd)]


class _Box(msgspec.Struct, frozen=True):
    """A rectangle with lines; wires leave at the middle of its side."""

    x: int
    y: int
    lines: tuple[str, ...]
    up: bool

    @property
    def height(self) -> int:
        return _ROW * len(self.lines) + 12

    def draw(self) -> Iterator[str]:
        off = "" if self.up else ' class="off"'
        yield f'<rect x="{self.x}" y="{self.y}" width="{_BOX}" height="{self.height}"{off}/>'
        for row, line in enumerate(self.lines):
            style = "t" if row == 0 else "d"
            y = self.y + 22 + row * _ROW
            yield f'<text class="{style}" x="{self.x + 12}" y="{y}">{html.escape(line)}</text>'


def svg(found: Survey) -> str:
    """Return the map as a picture: machines on the left, wires on the right."""
    parts: list[str] = []
    wires: dict[str, _Box] = {}
    y = _LEFT
    for key, box_lines, up in _wire_boxes(found):
        wires[key] = box = _Box(_RIGHT, y, box_lines, up)
        parts += box.draw()
        y += box.height + 18
    height = y
    y = _LEFT
    for machine in found.machines:
        lines = (machine.name + ("" if machine.up else " (down)"), *map(_card_words, machine.cards))
        box = _Box(_LEFT, y, lines, machine.up)
        parts += box.draw()
        for row, card in enumerate(machine.cards, start=1):
            if card.on in wires:
                parts.append(_path(box, row, wires[card.on], up=card.link and machine.up))
        y += box.height + 18
    for cable in found.cables:
        parts += _cable_arc(cable, wires)
    return _document("\n".join(parts), max(height, y, 80))


def _wire_boxes(found: Survey) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    for switch in found.switches:
        moved = sum(port.received_bytes for port in switch.ports)
        lines = (f"switch {switch.name}", f"{switch.status}, {format_size(moved)} passed")
        yield (
            f"switch:{switch.name}",
            (*lines, *filter(None, [switch.uplink])),
            switch.status == "up",
        )
    for network in found.bridges:
        lines = (f"network {network.name}", f"{network.interface} {network.address}")
        yield f"network:{network.name}", lines, network.status == "up"
    for cable in found.cables:
        yield f"cable:{cable.name}", (f"cable {cable.name}", cable.status), cable.status == "up"


def _card_words(card: Card) -> str:
    return " ".join(
        filter(None, (card.name, card.mac, card.address, "" if card.on else card.backend))
    )


def _path(box: _Box, row: int, wire: _Box, *, up: bool) -> str:
    x, y = box.x + _BOX, box.y + 17 + row * _ROW
    end = wire.y + wire.height // 2
    return _curve(x, y, wire.x, end, up=up)


def _cable_arc(cable: CableFacts, wires: dict[str, _Box]) -> Iterator[str]:
    own = wires[f"cable:{cable.name}"]
    for end in _ends(cable):
        if f"switch:{end}" in wires:
            box = wires[f"switch:{end}"]
            x, bend = _RIGHT + _BOX, _RIGHT + _BOX + 90
            a, b = box.y + box.height // 2, own.y + own.height // 2
            off = "" if cable.status == "up" else ' class="off"'
            yield f'<path{off} d="M{x} {a} C{bend} {a} {bend} {b} {x} {b}"/>'


def _curve(x: int, y: int, to_x: int, to_y: int, *, up: bool) -> str:
    off = "" if up else ' class="off"'
    middle = (x + to_x) // 2
    return f'<path{off} d="M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}"/>'


def _document(body: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><title>wirt net map</title>'
        f"<style>{_STYLE}</style>\n{body}\n</svg>"
    )
