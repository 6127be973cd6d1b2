"""Making a machine: its description from an image, defaults and the user's settings."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from wirt.catalog.image import Kind, StoredImage
from wirt.errors import UsageError
from wirt.host.qemu_probe import probe
from wirt.spec import toml
from wirt.spec.machine import Machine
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.machines import new_machine
from wirt.store.record import Record, write_record
from wirt.units import GIB
from wirt.vm.channels import STANDARD
from wirt.vm.context import Context
from wirt.vm.description import summarise
from wirt.vm.fresh import random_mac, random_uuid
from wirt.vm.ownership import choose_uid, give
from wirt.vm.source import CdFile, DiskFile, Source, check_backing_free

DEFAULT_DISK = 20 * GIB


class Wish(msgspec.Struct, frozen=True):
    """What the user wants of a new machine beside its name and source.

    ``settings`` is a tree as in machine.toml, which goes over what the image suggests.
    ``disk_size`` grows the copy-on-write disk, in bytes; 0 leaves the image's size.
    """

    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    own_disk: bool = False
    disk_size: int = 0
    cdrom: str = ""
    temporary: bool = False
    seed: bool = True
    """Give a pulled image a cloud-init seed: user, key, host name, wirt's helper."""


def create(context: Context, name: str, source: Source | None, wish: Wish) -> VmPaths:
    """Make the machine ``name``; nothing of it stays if that fails.

    Raises AlreadyExists, UsageError, SpecError, ImageError, HostError.
    """
    with new_machine(context.home, name) as paths:
        machine = _describe(context, paths, name, source, wish)
        if _wants_seed(source, wish):
            _write_seed(context, paths, machine, source)
        write_file(paths.spec, toml.dump(machine).encode())
        record = _record(context, source, wish)
        record = msgspec.structs.replace(record, summary=summarise(paths, machine))
        write_record(paths.record, record)
        give(paths, record)
    return context.home.vm(name)


def _wants_seed(source: Source | None, wish: Wish) -> bool:
    return wish.seed and isinstance(source, StoredImage) and source.record.kind == Kind.PULLED


def _write_seed(context: Context, paths: VmPaths, machine: Machine, source: Source | None) -> None:
    from wirt.catalog.seed import Seed, build_seed
    from wirt.vm.keys import public_key

    user = source.record.user if isinstance(source, StoredImage) else ""
    seed = Seed(
        instance_id=machine.uuid,
        hostname=machine.name,
        user=user,
        ssh_keys=(public_key(context),),
    )
    write_file(paths.seed, build_seed(seed))


def _record(context: Context, source: Source | None, wish: Wish) -> Record:
    from wirt.host.process_id import ProcessId

    owner = ProcessId.of(os.getpid()) if wish.temporary else None
    guest = source.record if isinstance(source, StoredImage) else None
    return Record(
        created=time.time(),
        image=guest.name if guest else getattr(source, "path", ""),
        image_id=guest.id if guest else "",
        guest_user=guest.user if guest else "",
        uid=choose_uid(context.home),
        temporary=wish.temporary,
        owner_pid=owner.pid if owner else 0,
        owner_start_ticks=owner.start_ticks if owner else 0,
    )


def _describe(
    context: Context, paths: VmPaths, name: str, source: Source | None, wish: Wish
) -> Machine:
    tree = _defaults(paths, source, wish)
    tree = merge(tree, wish.settings)
    tree["name"] = name
    machine = toml.from_data(tree)
    capabilities = probe(machine.qemu.binary or "qemu-system-x86_64", context.home.cache)
    return msgspec.structs.replace(
        machine,
        uuid=machine.uuid or random_uuid(),
        machine_type=capabilities.resolve_machine(machine.machine_type),
        nics=tuple(
            nic if nic.mac else msgspec.structs.replace(nic, mac=random_mac())
            for nic in machine.nics
        ),
    )


def _defaults(paths: VmPaths, source: Source | None, wish: Wish) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "displays": [{"type": "vnc"}],
        "nics": [{"backend": {"type": "user"}}],
        "channels": [msgspec.to_builtins(channel) for channel in STANDARD],
        "disks": [],
    }
    if isinstance(source, StoredImage):
        _use_guest_image(paths, source, wish, tree)
    elif isinstance(source, DiskFile):
        _use_disk_file(paths, source, wish, tree)
    else:
        _use_empty_disk(paths, wish, tree)
    cdrom = source.path if isinstance(source, CdFile) else wish.cdrom
    if cdrom:
        _insert_cd(os.path.abspath(cdrom), tree)
    return tree


def _use_guest_image(paths: VmPaths, image: StoredImage, wish: Wish, tree: dict[str, Any]) -> None:
    record = image.record
    if wish.own_disk:
        raise UsageError(
            f"{record.name} is shared by machines and cannot be one's own disk",
            hint="leave --own-disk out: the machine gets a copy-on-write disk",
        )
    base = DiskFile(os.fspath(image.disk), record.format, record.virtual_size)
    tree["disks"].append(_overlay(paths, base, wish.disk_size))
    if image.kernel:
        tree["boot"] = {
            "kernel": os.fspath(image.kernel),
            "initrd": os.fspath(image.initrd) if image.initrd else "",
            "cmdline": record.command_line,
        }
    if record.firmware == "uefi":
        tree["firmware"] = {"type": "uefi"}
    if _wants_seed(image, wish):
        seed = os.path.relpath(paths.seed, paths.root)
        tree["disks"].append({"image": seed, "format": "raw", "read_only": True})


def _use_disk_file(paths: VmPaths, source: DiskFile, wish: Wish, tree: dict[str, Any]) -> None:
    check_backing_free(source)
    if wish.own_disk:
        tree["disks"].append({"image": source.path, "format": source.format})
    else:
        tree["disks"].append(_overlay(paths, source, wish.disk_size))


def _use_empty_disk(paths: VmPaths, wish: Wish, tree: dict[str, Any]) -> None:
    from wirt.image.create import create_image

    size = wish.disk_size or DEFAULT_DISK
    create_image(os.path.join(paths.disks, "disk0.qcow2"), "qcow2", size)
    tree["disks"].append({"image": "disks/disk0.qcow2", "format": "qcow2"})


def _overlay(paths: VmPaths, base: DiskFile, size: int) -> dict[str, Any]:
    from wirt.image.create import create_image

    create_image(
        os.path.join(paths.disks, "disk0.qcow2"),
        "qcow2",
        max(size, base.virtual_size),
        backing=base.path,
        backing_format=base.format,
    )
    return {"image": "disks/disk0.qcow2", "format": "qcow2"}


def _insert_cd(path: str, tree: dict[str, Any]) -> None:
    tree["disks"].append({"image": path, "format": "raw", "bus": "sata", "media": "cdrom"})
    tree.setdefault("boot", {})["order"] = ["cdrom", "disk"]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with ``above`` laid over it, table by table; lists are replaced."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out
