"""A cloud-init seed for images that others published (data source NoCloud).

cloud-init looks for a file system labelled CIDATA with the files ``meta-data`` (who the
machine is), ``user-data`` (what to set up, a YAML document that starts with
``#cloud-config``) and ``network-config`` (version 2). JSON is YAML: nothing needs quoting.
It acts once for each instance-id: a new id makes it act again.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import msgspec

from wirt.catalog.fat import build_fat
from wirt.catalog.recipe import guest_parts

LABEL = "CIDATA"
_HELPER_FILES = {
    "wirt-guest": ("/usr/lib/wirt/wirt-guest", "0755"),
    "wirt-guest.service": ("/etc/systemd/system/wirt-guest.service", "0644"),
}
# Enabled units start at the next boot; the helper is wanted now. A guest without perl, or
# without systemd, is left as it is.
_START_HELPER = (
    "if command -v perl >/dev/null && command -v systemctl >/dev/null; then "
    "systemctl daemon-reload; systemctl enable --now wirt-guest.service; fi"
)


class SeedFile(msgspec.Struct, frozen=True):
    """A file that cloud-init writes into the guest."""

    path: str
    content: bytes
    mode: str = "0644"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is told at its first start."""

    instance_id: str
    """Equal for equal machines: wirt uses the machine's uuid."""
    hostname: str
    macs: tuple[str, ...] = ()
    """Cards that ask for an address, as eth0, eth1 …; empty: cloud-init's own choice."""
    user: str = ""
    """The account that gets the keys; empty: the image's own default user."""
    ssh_keys: tuple[str, ...] = ()
    password_hash: str = ""
    """For the console, as crypt(5) writes it; empty: none."""
    files: tuple[SeedFile, ...] = ()
    commands: tuple[str, ...] = ()
    """Shell lines that run as root at the end of the first start."""
    packages: tuple[str, ...] = ()
    """Installed if the guest reaches its archive, for example qemu-guest-agent."""
    helper: bool = True
    """Whether to install wirt's guest helper."""


def build_seed(seed: Seed) -> bytes:
    """Return the raw image to attach as a read-only disk. Raises UsageError if it is too large."""
    files = {
        "meta-data": _document({"instance-id": seed.instance_id, "local-hostname": seed.hostname}),
        "user-data": b"#cloud-config\n" + _document(_user_data(seed)),
    }
    if seed.macs:
        files["network-config"] = _document(_network(seed.macs))
    return build_fat(files, label=LABEL)


def _network(macs: tuple[str, ...]) -> dict[str, Any]:
    """Return a configuration that every renderer of cloud-init understands."""
    cards = {
        f"eth{index}": {
            "match": {"macaddress": mac.lower()},
            "set-name": f"eth{index}",
            "dhcp4": True,
            "dhcp6": False,
        }
        for index, mac in enumerate(macs)
    }
    return {"version": 2, "ethernets": cards}


def _document(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _user_data(seed: Seed) -> dict[str, Any]:
    data: dict[str, Any] = {
        "hostname": seed.hostname,
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_authorized_keys": [key.strip() for key in seed.ssh_keys],
        "users": [_user(seed) if seed.user else "default"],
        "growpart": {"mode": "auto", "devices": ["/"]},
        "write_files": [_file(file) for file in (*seed.files, *_helper_files(seed))],
        "runcmd": [*_commands(seed)],
    }
    if seed.packages:
        data["package_update"] = True
        data["packages"] = list(seed.packages)
    return {key: value for key, value in data.items() if value != []}


def _user(seed: Seed) -> dict[str, Any]:
    user: dict[str, Any] = {
        "name": seed.user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": not seed.password_hash,
        "ssh_authorized_keys": [key.strip() for key in seed.ssh_keys],
    }
    if seed.password_hash:
        user["hashed_passwd"] = seed.password_hash
    return user


def _helper_files(seed: Seed) -> list[SeedFile]:
    if not seed.helper:
        return []
    parts = guest_parts()
    return [
        SeedFile(path=path, content=parts[name], mode=mode)
        for name, (path, mode) in _HELPER_FILES.items()
    ]


def _file(file: SeedFile) -> dict[str, str]:
    packed = gzip.compress(file.content, mtime=0)
    return {
        "path": file.path,
        "permissions": file.mode,
        "encoding": "gz+b64",
        "content": base64.b64encode(packed).decode(),
    }


def _commands(seed: Seed) -> list[str]:
    return [_START_HELPER, *seed.commands] if seed.helper else list(seed.commands)
