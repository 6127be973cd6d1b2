"""The golden machines: descriptions in ``golden/*.toml``, and what a host decided for them."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from wirt.qapi.capabilities import Capabilities
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv
from wirt.qemu.runtime import Runtime
from wirt.spec import toml
from wirt.spec.machine import Machine

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
DEFAULT_VERSION = "7.2"
VERSIONS = {"sound-virtio": "10.0", "fork-child-10": "10.0"}
"""Machines that need a newer QEMU than the oldest one."""

FACTS: dict[str, dict[str, Any]] = {
    "direct-boot": {"paused": True},
    "descriptors": {
        "fd_paths": {"/root/a.qcow2": 20, "disks/b.qcow2": 21, "/root/cd.iso": 22},
        "host_devices": {"disks/b.qcow2"},
    },
    "discarded-writes": {
        "fd_paths": {"/root/b.qcow2": 20},
        "overlays": {0: "/vm/disks/discarded0.qcow2", 1: "/vm/disks/discarded1.qcow2"},
    },
    "given-sockets": {"socket_fds": {"qmp": 10, "serial0": 11, "org.wirt.guest.0": 12}},
    "host-devices": {"host_devices": {"link-to-device"}, "cd_drives": {"drives/dvd"}},
    "kvm": {"accelerator": "kvm"},
    "tpm-given": {"tpm_fd": 13},
    "fork-child": {
        "memory_file": "/vm/template/mem",
        "incoming": True,
        "vmgenid": "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87",
    },
    "networks-of-the-host": {
        "uplinks": {
            "lan-net": {"type": "tap", "fd": "20", "vhost": False, "sndbuf": 1 << 20},
            "nic1-net": {"type": "tap", "fd": "21", "vhost": False},
            "nic2-net": {"type": "vde", "sock": "vde:///run/wirt/sw/ctl"},
            "nic3-net": {
                "type": "stream",
                "server": False,
                "addr": {"type": "fd", "str": "22"},
            },
        }
    },
    "fork-child-10": {"memory_file": "/vm/template/mem", "incoming": True},
    "fork-parent": {"memory_file": "/vm/mem", "memory_shared": True, "sandbox": False},
}


@dataclass(frozen=True)
class Place:
    """Directories that stand for a machine's own."""

    vm: str = "/vm"
    sockets: str = "/run/wirt"
    code: str = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    facts: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.toml"))


def load(name: str) -> Machine:
    path = GOLDEN / f"{name}.toml"
    return toml.load(path.read_text(), file=str(path))


def recorded(version: str) -> Capabilities:
    data = (HERE / "capabilities" / f"{version}.json").read_bytes()
    return msgspec.json.decode(data, type=Capabilities)


def recorded_for(name: str) -> Capabilities:
    return recorded(VERSIONS.get(name, DEFAULT_VERSION))


def runtime(name: str, place: Place | None = None) -> Runtime:
    place = place or Place()
    facts = {"accelerator": "tcg", **FACTS.get(name, {}), **place.facts}
    return Runtime(
        directory=place.vm,
        socket=lambda socket: f"{place.sockets}/{socket}.sock",
        firmware_code=place.code,
        uefi_variables=f"{place.vm}/disks/uefi-variables.fd",
        **facts,
    )


def compiled(name: str, capabilities: Capabilities | None = None) -> list[str]:
    capabilities = capabilities or recorded_for(name)
    return argv("qemu-system-x86_64", arguments(load(name), runtime(name), capabilities))


def readable(words: Sequence[str]) -> str:
    """Return the words one option on a line, unquoted: made for people and ``diff``."""
    lines: list[str] = []
    for word in words[1:]:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


def json_values(words: Sequence[str], option: str) -> list[dict[str, Any]]:
    return [
        json.loads(value)
        for before, value in itertools.pairwise(words)
        if before == option and value.startswith("{")
    ]
