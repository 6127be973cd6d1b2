"""Rules that join several settings. Each returns problems; none raises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from wirt.spec.console import Channel, SharesSerial
from wirt.spec.decode import Problem
from wirt.spec.disk import Disk
from wirt.spec.hardware import Cpu, Rtc
from wirt.spec.machine import Machine
from wirt.spec.nic import Network, Nic, Tap, User


def problems_of(machine: Machine) -> list[Problem]:
    """Return every contradiction between settings of ``machine``."""
    return [
        *_topology(machine.cpu),
        *_firmware(machine),
        *_tpm(machine),
        *_boot(machine),
        *_rtc(machine.rtc),
        *(p for index, disk in enumerate(machine.disks) for p in _disk(index, disk)),
        *_unique_ids(machine),
        *_unique_macs(machine.nics),
        *_unique_ports(machine.nics),
        *_limits(machine.nics),
        *_unique_channels(machine.channels),
        *_numa(machine),
        *_monitors(machine),
    ]


def _topology(cpu: Cpu) -> Iterator[Problem]:
    total = cpu.max_vcpus or cpu.vcpus
    if cpu.max_vcpus and cpu.max_vcpus < cpu.vcpus:
        yield Problem(("cpu", "max_vcpus"), f"{cpu.max_vcpus} is less than vcpus ({cpu.vcpus})")
    parts = [part for part in (cpu.sockets, cpu.cores, cpu.threads) if part]
    product = 1
    for part in parts:
        product *= part
    all_given = len(parts) == 3
    if parts and (total % product or (all_given and product != total)):
        yield Problem(
            ("cpu",),
            f"sockets x cores x threads is {product}, which does not make {total} vcpus",
            "leave one of them out: it is derived",
        )


def _numa(machine: Machine) -> Iterator[Problem]:
    total = sum(node.memory for node in machine.numa)
    if machine.numa and total != machine.memory:
        yield Problem(
            ("numa",), f"the nodes have {total} bytes together, the machine {machine.memory}"
        )
    total_vcpus = machine.cpu.max_vcpus or machine.cpu.vcpus
    seen: set[int] = set()
    for index, node in enumerate(machine.numa):
        for vcpu in _vcpus(node.vcpus):
            if vcpu >= total_vcpus:
                yield Problem(
                    ("numa", index, "vcpus"), f"there is no vcpu {vcpu}: there are {total_vcpus}"
                )
                break
            if vcpu in seen:
                yield Problem(("numa", index, "vcpus"), f"vcpu {vcpu} is in two nodes")
                break
            seen.add(vcpu)
    if machine.numa and machine.memory_path:
        yield Problem(("memory_path",), "is not for machines with NUMA nodes")


def _vcpus(text: str) -> Iterator[int]:
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _monitors(machine: Machine) -> Iterator[Problem]:
    for index, monitor in enumerate(machine.monitors):
        backend = monitor.backend
        if isinstance(backend, SharesSerial) and backend.port >= len(machine.serials):
            yield Problem(("monitors", index, "backend", "port"), "there is no such serial port")


def _firmware(machine: Machine) -> Iterator[Problem]:
    firmware = machine.firmware
    if firmware.secure_boot and firmware.type != "uefi":
        yield Problem(
            ("firmware", "secure_boot"), "needs UEFI", 'set firmware.type = "uefi" as well'
        )
    if firmware.secure_boot and not _is_q35(machine.machine_type):
        yield Problem(
            ("firmware", "secure_boot"),
            f"needs a q35 machine (for SMM), not {machine.machine_type}",
        )
    if firmware.variables and firmware.type != "uefi":
        yield Problem(("firmware", "variables"), "belongs to UEFI", 'firmware.type is "bios"')


def _tpm(machine: Machine) -> Iterator[Problem]:
    tpm = machine.tpm
    if tpm.version != "none" and machine.boot.initrd and machine.firmware.type == "bios":
        # QEMU leaves 160 KiB at the top of memory to ACPI; with the TPM's log it needs 192.
        yield Problem(
            ("tpm", "version"),
            "is not for a kernel that BIOS boots directly: QEMU loads boot.initrd over the ACPI "
            "tables, and the guest finds no TPM",
            "boot a disk that has a boot loader (wirt pull, wirt create --image), or by UEFI",
        )
    if tpm.version == "1.2" and tpm.model == "tpm-crb":
        yield Problem(("tpm", "model"), "tpm-crb came with TPM 2.0", "leave it out, or tpm-tis")
    if tpm.version == "none" and tpm.model != "auto":
        yield Problem(("tpm", "model"), "is of no use without a TPM", 'set tpm.version = "2.0"')


def _is_q35(machine_type: str) -> bool:
    return "q35" in machine_type


def _boot(machine: Machine) -> Iterator[Problem]:
    for key in ("initrd", "cmdline"):
        if getattr(machine.boot, key) and not machine.boot.kernel:
            yield Problem(("boot", key), "needs boot.kernel")


def _rtc(rtc: Rtc) -> Iterator[Problem]:
    if rtc.base in {"utc", "localtime"}:
        return
    try:
        datetime.fromisoformat(rtc.base)
    except ValueError as error:
        yield Problem(("rtc", "base"), f"{rtc.base} is not a date: {error}")


def _disk(index: int, disk: Disk) -> Iterator[Problem]:
    path = ("disks", index)
    removable = disk.media == "cdrom" or disk.bus == "floppy"
    if not disk.image and not removable:
        yield Problem((*path, "image"), "is missing", "only cdrom and floppy drives may be empty")
    if disk.media == "cdrom" and disk.bus in {"virtio", "floppy", "sd", "pflash", "mtd"}:
        yield Problem((*path, "bus"), f"there are no {disk.bus} CD drives", "use scsi, sata or ide")
    if disk.geometry and disk.bus not in {"ide", "scsi", "virtio", "usb"}:
        yield Problem((*path, "geometry"), f"{disk.bus} drives have none")
    if disk.throttle:
        yield from _throttle((*path, "throttle"), disk)


def _throttle(path: tuple[str | int, ...], disk: Disk) -> Iterator[Problem]:
    limits = disk.throttle
    if limits is None:
        return
    for unit in ("bytes", "iops"):
        parts = getattr(limits, f"{unit}_read") or getattr(limits, f"{unit}_write")
        if getattr(limits, f"{unit}_total") and parts:
            yield Problem(path, f"{unit}_total excludes {unit}_read and {unit}_write")


def _unique_ids(machine: Machine) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for kind in ("disks", "nics", "channels"):
        for index, item in enumerate(getattr(machine, kind)):
            if item.id and item.id in seen:
                yield Problem((kind, index, "id"), f"{item.id!r} is also the id of {seen[item.id]}")
            seen[item.id] = f"{kind}[{index}]"


def _unique_macs(nics: tuple[Nic, ...]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, nic in enumerate(nics):
        mac = nic.mac.lower()
        if mac and mac in seen:
            yield Problem(("nics", index, "mac"), f"{mac} is already another card's")
        if mac and int(mac[:2], 16) & 1:
            yield Problem(
                ("nics", index, "mac"),
                f"{mac} is a multicast address",
                "the first byte of a card's address is even, for example 52:54:00:12:34:56",
            )
        seen.add(mac)


def _unique_ports(nics: tuple[Nic, ...]) -> Iterator[Problem]:
    seen: set[tuple[str, str, int]] = set()
    for index, nic in enumerate(nics):
        if not isinstance(nic.backend, User):
            continue
        for number, forward in enumerate(nic.backend.forwards):
            port = (forward.protocol, forward.host_address, forward.host_port)
            if forward.host_port and port in seen:
                yield Problem(
                    ("nics", index, "backend", "forwards", number),
                    f"{forward.host_address}:{forward.host_port} is forwarded twice",
                )
            seen.add(port)


def _limits(nics: tuple[Nic, ...]) -> Iterator[Problem]:
    for index, nic in enumerate(nics):
        if nic.rate is not None and not isinstance(nic.backend, Tap | Network):
            yield Problem(
                ("nics", index, "rate"),
                "only a card on a tap or a network can be limited",
                "between switches, a cable can: wirt cable create A B --bandwidth 1M",
            )


def _unique_channels(channels: tuple[Channel, ...]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, channel in enumerate(channels):
        if channel.name in seen:
            yield Problem(("channels", index, "name"), f"{channel.name!r} is used twice")
        seen.add(channel.name)
