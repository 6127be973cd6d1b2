"""The board, processors and memory."""

from __future__ import annotations

import re

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import flag, keep, valued
from wirt.qemu.legacy.values import number, parse, size

_OTHER_BOARDS = {
    "versatilepb": "arm", "versatileab": "arm", "integratorcp": "arm", "realview": "arm",
    "vexpress-a9": "arm", "virt": "arm or riscv", "mac99": "ppc", "g3beige": "ppc",
    "SS-5": "sparc", "sun4u": "sparc64", "malta": "mips", "mcf5208evb": "m68k",
    "xenpv": "x86 with Xen", "xenfv": "x86 with Xen",
}  # fmt: skip
_QUERIES = {"?", "help", "list"}


def machine(draft: Draft, given: Given) -> Outcome | None:
    """Board and its options."""
    if given.value in _QUERIES:
        draft.query = ["-machine", "help"]
        return None
    values = parse(given.value, first="type")
    name = values.take("type")
    accelerator = values.take("accel")
    if accelerator:
        _accelerate(draft, accelerator)
    outcome = _board(draft, name) if name else None
    irqchip = values.take("kernel_irqchip", "kernel-irqchip")
    if values.has("usb"):
        draft.has_usb = values.flag("usb")
    if values.has("hpet"):
        draft.settings["hpet"] = values.flag("hpet")
    if values.has("acpi"):
        draft.settings["acpi"] = values.flag("acpi")
    memory_backend = values.take("memory-backend")
    draft.memory_backend = memory_backend
    _flash(draft, values.take("pflash0"), values.take("pflash1"))
    if values.take("pcspk-audiodev"):
        draft.settings["speaker"] = True
    if values.take("smm") == "on":
        draft.firmware["smm"] = True
    draft.board_options.update(
        {key: text for key, text in values if re.fullmatch(r"[\w.-]+", text)}
    )
    if irqchip in {"on", "split"}:
        draft.board_options["kernel-irqchip"] = irqchip
    return outcome


def _flash(draft: Draft, code: str, variables: str) -> None:
    for place, node in enumerate((code, variables)):
        if node:
            draft.firmware[f"pflash{place}"] = node


def _accelerate(draft: Draft, names: str) -> None:
    first = names.replace(",", ":").split(":")
    if first == ["tcg"]:
        draft.settings["accelerator"] = "tcg"


def _board(draft: Draft, name: str) -> Outcome | None:
    known = {m.name for m in draft.capabilities.machines}
    known |= {m.alias for m in draft.capabilities.machines}
    if name in _OTHER_BOARDS:
        raise Refused(
            f"{name} is not a PC, it is a board of {_OTHER_BOARDS[name]}",
            "qemu-system-arm, -ppc, -sparc … run it",
        )
    wanted = "q35" if "q35" in name else "isapc" if name == "isapc" else "pc"
    if name in known:
        draft.settings["machine_type"] = name
        return Outcome("same") if name == wanted else None
    if not re.match(r"(pc|q35|rhel|fedora|ubuntu|isapc)", name):
        raise Refused(f"no QEMU for PCs has a board {name[:40]!r}", "pc, q35 or isapc")
    draft.settings["machine_type"] = wanted
    return Outcome(
        today=f"-machine {wanted}",
        why=f"{name} is older than what this QEMU keeps: the guest sees the present {wanted}",
    )


def cpu(draft: Draft, given: Given) -> Outcome | None:
    """Model and features."""
    if given.value in _QUERIES:
        draft.query = ["-cpu", "help"]
        return None
    if not re.fullmatch(r"[\w+,.=:-]{1,900}", given.value):
        raise Refused(f"{given.value[:60]!r} is not a CPU model")
    model, comma, features = given.value.partition(",")
    if model == "host" and not draft.facts.has_kvm:
        draft.cpu["model"] = f"max{comma}{features}"
        return Outcome(today="-cpu max", why="the host's own CPU needs KVM, which does not work "
                       "here: all that software can do instead")  # fmt: skip
    draft.cpu["model"] = given.value
    return Outcome("same")


def smp(draft: Draft, given: Given) -> Outcome | None:
    """Number of vcpus and their topology."""
    values = parse(given.value, first="cpus")
    parts = {
        key: number(values.take(key, default="0"), key, 0, 1024)
        for key in ("cpus", "maxcpus", "sockets", "cores", "threads")
    }
    for key in ("dies", "clusters", "books", "drawers", "modules"):
        if values.take(key, default="1") != "1":
            raise Refused(f"{key}= belongs to no machine of those days", "sockets, cores, threads")
    sockets, cores, threads = parts["sockets"], parts["cores"], parts["threads"]
    vcpus = parts["cpus"] or max(1, sockets) * max(1, cores) * max(1, threads)
    total = parts["maxcpus"] or vcpus
    if total < vcpus:
        raise Refused(f"maxcpus={total} is less than {vcpus} vcpus")
    fitting = _topology(total, sockets, cores, threads)
    draft.cpu.update(vcpus=vcpus, max_vcpus=total if total != vcpus else 0, **fitting)
    said = (sockets, cores, threads)
    made = tuple(fitting.values())
    if any(old and old != new for old, new in zip(said, made, strict=True)):
        return Outcome(
            today=f"-smp cpus={vcpus},maxcpus={total},sockets={made[0]},cores={made[1]},"
            f"threads={made[2]}",
            why="sockets × cores × threads must now be the number of vcpus",
        )
    return Outcome("same")


def _topology(total: int, sockets: int, cores: int, threads: int) -> dict[str, int]:
    """Return what makes ``total``. What was left open became sockets, until QEMU 6.2."""
    threads = threads if threads and total % threads == 0 else 1
    left = total // threads
    if sockets and not cores and left % sockets == 0:
        cores = left // sockets
    cores = cores if cores and left % cores == 0 else 1
    return {"sockets": left // cores, "cores": cores, "threads": threads}


def memory(draft: Draft, given: Given) -> Outcome | None:
    """Memory in MiB, or with a unit."""
    values = parse(given.value, first="size")
    wanted = size(values.take("size", default="128"), "-m")
    if wanted < 1 << 20:
        raise Refused("less than a megabyte is no memory")
    draft.settings["memory"] = wanted
    slots, most = values.take("slots"), values.take("maxmem")
    if slots or most:
        draft.args += ["-m", f"size={wanted // 1024}K,slots={slots or 0},maxmem={most or 0}"]
    return Outcome("same")


def mem_path(draft: Draft, given: Given) -> Outcome | None:
    """Directory of huge pages."""
    draft.need(given.value, "the directory")
    draft.settings["memory_path"] = given.value
    return None


def mem_prealloc(draft: Draft, _given: Given) -> Outcome | None:
    """Take the memory at the start."""
    draft.settings["memory_prealloc"] = True
    return None


def numa(draft: Draft, given: Given) -> Outcome | None:
    """NUMA nodes: memory and vcpus of each."""
    values = parse(given.value, first="type")
    if values.take("type") != "node" or values.has("initiator"):
        return keep(draft, given)
    values.take("nodeid")
    text = values.take("mem")
    cpus = ",".join(values.take_all("cpus"))
    if not re.fullmatch(r"(\d{1,4}(-\d{1,4})?(,(?=\d))?)*", cpus):
        raise Refused(f"cpus={cpus[:40]!r} are no numbers of vcpus")
    draft.numa.append((size(text, "mem") if text else 0, cpus, values.take("memdev")))
    return None


def smbios(draft: Draft, given: Given) -> Outcome | None:
    """Texts that the guest finds in its SMBIOS tables."""
    return keep(draft, given)


def hpet(draft: Draft, _given: Given) -> Outcome | None:
    """No high precision event timer."""
    draft.settings["hpet"] = False
    return None


def acpi(draft: Draft, _given: Given) -> Outcome | None:
    """No ACPI."""
    draft.settings["acpi"] = False
    return None


def name(draft: Draft, given: Given) -> Outcome | None:
    """Name of the guest, and of the process."""
    values = parse(given.value, first="guest")
    draft.settings["title"] = values.take("guest")
    process = values.take("process")
    if process:
        draft.process += ["-name", f"process={process.replace(',', ',,')}"]
    return Outcome("same")


def uuid(draft: Draft, given: Given) -> Outcome | None:
    """UUID."""
    wanted = given.value.lower()
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", wanted):
        raise Refused(f"{given.value[:60]!r} is not a UUID")
    draft.settings["uuid"] = wanted
    return Outcome("same")


OPTIONS = (
    valued("M", "0.8", "", "board", machine, "-machine"),
    valued("machine", "0.15", "", "board and its properties", machine),
    valued("cpu", "0.9", "", "CPU model and features", cpu),
    valued("smp", "0.8", "", "number of vcpus, sockets, cores and threads", smp),
    valued("m", "0.8", "", "memory in MiB", memory),
    valued(
        "mem-path",
        "kvm-65",
        "",
        "memory from a directory of huge pages",
        mem_path,
        "-object memory-backend-file,mem-path=",
    ),
    flag(
        "mem-prealloc",
        "kvm-84",
        "",
        "take all memory at the start",
        mem_prealloc,
        "-object memory-backend-ram,prealloc=on",
    ),
    valued("numa", "0.11", "", "NUMA nodes", numa, "-numa node,memdev=", "mem= went in 5.1"),
    valued("smbios", "0.11", "", "SMBIOS tables", smbios),
    flag("no-hpet", "0.10", "9.0", "no high precision event timer", hpet, "-machine hpet=off"),
    flag("no-acpi", "0.8", "9.0", "no ACPI", acpi, "-machine acpi=off"),
    valued("name", "0.9", "", "name of the guest, in the window's title", name),
    valued("uuid", "0.10", "", "UUID of the machine", uuid),
)
