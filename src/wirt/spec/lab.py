"""A lab: machines and the wires between them, described in one file.

::

    name = "shop"                      # or the file's name

    [switches.dmz]                     # VDE switches
    [switches.lan]
    vlans = ["1=7", "2=7"]

    [networks.office]                  # bridge networks with DHCP and names
    address = "10.80.0.1/24"

    [cables.backbone]
    a = "dmz"
    b = "lan"
    delay = 20                         # milliseconds

    [machines.web]                     # as machine.toml, and: image, format, disk_size, wires
    image = "debian:12"
    memory = "256M"
    wires = ["dmz", "user"]

Names are private to the lab: what is called ``web`` here is the machine ``shop.web``. Every
name is checked before anything is made; there are no variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from wirt.errors import SpecError
from wirt.spec import toml
from wirt.spec.decode import Problem, decode
from wirt.spec.machine import Machine
from wirt.spec.nic import Network, Nic, Switch
from wirt.spec.setting import number, setting, size, text

USER = "user"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,23}$"
"""Of a lab or a part of one. No dot: it joins the two."""


class LabSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A VDE switch of the lab."""

    vlans: Annotated[
        tuple[Annotated[str, text("PORT=VLAN", pattern=r"^\d{1,5}=[\d,t]+$")], ...],
        setting("802.1Q VLANs of ports, as `wirt switch create --vlans`"),
    ] = ()
    uplink: Annotated[
        str, text("none, tap or bridge=NAME", pattern=r"^(none|tap|(tap|bridge)=[\w.-]+)$")
    ] = "none"


class LabNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bridge network of the lab."""

    address: Annotated[
        str, text("Address of the host in it; empty: a free one", pattern=r"^[0-9./]*$")
    ] = ""
    private: Annotated[bool, setting("In a network namespace of its own: no root needed")] = True
    outside: Annotated[bool, setting("A way out through the host")] = False


class LabCable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A cable between two switches of the lab, or to one elsewhere; alike in both directions."""

    a: Annotated[str, text("Switch of the lab")]
    b: Annotated[str, text("Switch of the lab, or ssh://HOST/SWITCH")]
    delay: Annotated[int, number("Delay in milliseconds", ge=0, le=60_000)] = 0
    jitter: Annotated[int, number("Spread of the delay in milliseconds", ge=0, le=60_000)] = 0
    loss: Annotated[int, number("Frames lost, in percent", ge=0, le=100)] = 0
    bandwidth: Annotated[int, size("Bytes a second; 0: no limit")] = 0


class _Wires(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine of a lab has beside the settings of every machine."""

    image: Annotated[str, text("Guest image or disk image file")] = ""
    format: Annotated[str, text("Format of a disk image file")] = ""
    disk_size: Annotated[int, size("Size of the machine's disk; 0: the image's")] = 0
    wires: Annotated[
        tuple[str, ...], setting("Switches and networks of the lab, one card for each; or user")
    ] = ()


class LabMachine(msgspec.Struct, frozen=True):
    """A machine of a lab; ``machine`` has its full name and cards on the lab's own wires."""

    image: str
    format: str
    disk_size: int
    settings: Mapping[str, Any]
    machine: Machine


class Lab(msgspec.Struct, frozen=True):
    """A lab that makes sense as a whole; keys are the names inside."""

    name: str
    switches: Mapping[str, LabSwitch]
    networks: Mapping[str, LabNetwork]
    cables: Mapping[str, LabCable]
    machines: Mapping[str, LabMachine]

    def full(self, part: str) -> str:
        """Return the name of a part outside the lab."""
        return full_name(self.name, part)


def full_name(lab: str, part: str) -> str:
    """Return ``shop.web`` for ``web`` in ``shop``."""
    return f"{lab}.{part}"


def load(content: str, *, file: str, name: str = "") -> Lab:
    """Return the lab that ``content`` describes; ``name`` replaces its own.

    Raises SpecError for the first problem; the hint counts the others.
    """
    lab, problems = check(content, file=file, name=name)
    if lab is None:
        first = problems[0]
        more = f"{len(problems) - 1} more: see `wirt lab check FILE`" if len(problems) > 1 else ""
        first.hint = "; ".join(part for part in (first.hint, more) if part)
        raise first
    return lab


def check(content: str, *, file: str, name: str = "") -> tuple[Lab | None, list[SpecError]]:
    """Return the lab, or None and every problem with its line."""
    tree, error = toml.parse(content, file=file)
    if error is not None:
        return None, [error]
    stem = os.path.basename(file).rsplit(".", 1)[0]
    reader = _Reader(name or str(tree.get("name", stem)))
    lab = reader.read(tree)
    problems = [toml.located(problem, content, file) for problem in reader.problems]
    return (None if problems else lab), problems


class _Reader:
    """Turns a tree into a lab, collecting what is wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []

    def read(self, tree: Mapping[str, Any]) -> Lab:
        if not _matches(_NAME, self.name):
            self._refuse(("name",), f"{self.name[:40]!r} cannot be a lab's name")
        for key in set(tree) - {"name", "switches", "networks", "cables", "machines"}:
            self._refuse((key,), "is not a part of a lab", "switches, networks, cables, machines")
        switches = dict(self._parts(tree, "switches", LabSwitch))
        networks = dict(self._parts(tree, "networks", LabNetwork))
        cables = dict(self._parts(tree, "cables", LabCable))
        for name in set(switches) & set(networks):
            self._refuse(("networks", name), "is the name of a switch too")
        self._check_cables(cables, switches)
        machines = {
            name: machine
            for name, settings in self._tables(tree, "machines")
            if (machine := self._machine(name, settings, switches, networks)) is not None
        }
        if not machines and not self.problems:
            self._refuse(("machines",), "there are none")
        self._check_macs(machines)
        return Lab(self.name, switches, networks, cables, machines)

    def _refuse(self, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        self.problems.append(Problem(path, message, hint))

    def _tables(self, tree: Mapping[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        members = tree.get(kind, {})
        if not isinstance(members, dict):
            self._refuse((kind,), "a table of tables is expected here")
            return
        for name, content in members.items():
            if not _matches(_NAME, name):
                self._refuse((kind, name), "is no name: letters, digits, dash and underscore")
            elif not isinstance(content, dict):
                self._refuse((kind, name), "a table is expected here")
            else:
                yield name, content

    def _parts(self, tree: Mapping[str, Any], kind: str, cls: type[Any]) -> Iterator[Any]:
        for name, content in self._tables(tree, kind):
            part, problems = decode(content, cls)
            self._add(problems, kind, name)
            if part is not None:
                yield name, part

    def _add(self, problems: list[Problem], kind: str, name: str) -> None:
        self.problems += [Problem((kind, name, *p.path), p.message, p.hint) for p in problems]

    def _check_cables(self, cables: Mapping[str, LabCable], switches: Mapping[str, Any]) -> None:
        for name, cable in cables.items():
            for end, value in (("a", cable.a), ("b", cable.b)):
                if value not in switches and not (end == "b" and value.startswith("ssh://")):
                    self._refuse(
                        ("cables", name, end),
                        f"there is no switch {value[:40]!r} in this lab",
                        _known(switches),
                    )
            if cable.jitter > cable.delay:
                self._refuse(("cables", name, "jitter"), "is at most the delay")
            if cable.a == cable.b:
                self._refuse(("cables", name), "both ends are on one switch: frames would circle")

    def _machine(
        self,
        name: str,
        content: dict[str, Any],
        switches: Mapping[str, Any],
        networks: Mapping[str, Any],
    ) -> LabMachine | None:
        own = {field: content[field] for field in _Wires.__struct_fields__ if field in content}
        wires, problems = decode(own, _Wires)
        self._add(problems, "machines", name)
        if wires is None:
            return None
        settings = {key: value for key, value in content.items() if key not in own}
        if "name" in settings:
            self._refuse(("machines", name, "name"), "the table's name is the machine's")
        if wires.wires and "nics" in settings:
            self._refuse(("machines", name, "wires"), "wires and nics say the same: use one")
        if wires.wires:
            settings["nics"] = [
                {"backend": self._wire(name, index, wire, switches, networks)}
                for index, wire in enumerate(wires.wires)
            ]
        settings["name"] = full_name(self.name, name)
        machine, problems = toml.from_tree(settings)
        self._add(problems, "machines", name)
        if machine is None:
            return None
        machine = self._on_own_wires(name, machine, switches, networks)
        settings = {**settings, "nics": msgspec.to_builtins(machine.nics)}
        if not wires.wires and "nics" not in content:
            del settings["nics"]
        return LabMachine(wires.image, wires.format, wires.disk_size, settings, machine)

    def _wire(
        self,
        machine: str,
        index: int,
        wire: str,
        switches: Mapping[str, Any],
        networks: Mapping[str, Any],
    ) -> dict[str, Any]:
        if wire in switches:
            return {"type": "switch", "name": wire}
        if wire in networks:
            return {"type": "network", "name": wire}
        if wire != USER:
            self._refuse(
                ("machines", machine, "wires", index),
                f"there is no switch or network {wire[:40]!r} in this lab",
                _known({**switches, **networks, USER: None}),
            )
        return {"type": "user"}

    def _on_own_wires(
        self,
        name: str,
        machine: Machine,
        switches: Mapping[str, Any],
        networks: Mapping[str, Any],
    ) -> Machine:
        """Give the wires their full names; a lab has no wires but its own and ``user``."""
        nics = []
        for index, nic in enumerate(machine.nics):
            backend = nic.backend
            known = switches if isinstance(backend, Switch) else networks
            if isinstance(backend, Switch | Network):
                if backend.name not in known:
                    path = ("machines", name, "nics", index, "backend", "name")
                    self._refuse(path, f"{backend.name!r} is not in this lab", _known(known))
                full = full_name(self.name, backend.name)
                backend = msgspec.structs.replace(backend, name=full)
            nics.append(msgspec.structs.replace(nic, backend=backend))
        return msgspec.structs.replace(machine, nics=tuple(nics))

    def _check_macs(self, machines: Mapping[str, LabMachine]) -> None:
        seen: dict[tuple[str, str], str] = {}
        for name, one in machines.items():
            for index, nic in enumerate(one.machine.nics):
                wire = _shared_wire(nic)
                other = seen.setdefault((wire, nic.mac.lower()), name) if wire and nic.mac else name
                if other != name:
                    path = ("machines", name, "nics", index, "mac")
                    self._refuse(path, f"{other} has the same address on the same wire")


def _shared_wire(nic: Nic) -> str:
    backend = nic.backend
    return backend.name if isinstance(backend, Switch | Network) else ""


def _known(names: Mapping[str, Any]) -> str:
    return f"known: {', '.join(sorted(names))}" if names else "it has none"


def _matches(pattern: str, text_: str) -> bool:
    import re

    return re.fullmatch(pattern, text_) is not None
