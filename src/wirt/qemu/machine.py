"""The board, the accelerator, the processors and the memory."""

from __future__ import annotations

from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import Argument, QapiObject, QapiValue, user_object
from wirt.qemu.firmware import flash_nodes
from wirt.qemu.runtime import Runtime
from wirt.qemu.sound import AUDIO
from wirt.spec.hardware import Cpu
from wirt.spec.machine import Machine
from wirt.units import MIB, format_size_exact

TCG_CPU = "qemu64"
"""Under TCG the smallest model translates fastest. Debian and Ubuntu run on it; RHEL 9 and its
kin ask for x86-64-v2 or more, and need ``cpu.model = "max"``."""

READ_ONLY_BASE = (8, 2, 0)
"""Since then QEMU can map a file privately that it may not write."""

_MEMORY_STEP = 8 << 10
"""QEMU rounds ``-m`` up to 8 KiB, but not the backend, and then refuses the difference."""


def identity(machine: Machine) -> list[Argument]:
    """Return the name and UUID; nothing beyond the description is taken from defaults."""
    made = [Argument("-name", {"guest": machine.title or machine.name, "debug-threads": True})]
    if machine.uuid:
        made.append(Argument("-uuid", machine.uuid))
    return [*made, Argument("-nodefaults"), Argument("-no-user-config")]


def board_arguments(
    machine: Machine, runtime: Runtime, capabilities: Capabilities
) -> list[Argument]:
    """Return ``-machine`` and ``-accel``."""
    name, _, options = capabilities.resolve_machine(machine.machine_type).partition(",")
    value: QapiObject = {"type": name}
    if not machine.numa:
        value["memory-backend"] = "ram"
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        value[key] = text or "on"
    if not machine.hpet:
        value["hpet"] = False
    if not machine.acpi:
        value["acpi"] = False
    value.update(flash_nodes(machine))
    if machine.firmware.secure_boot:
        value["smm"] = True
    if "pcspk" in machine.sound:
        value["pcspk-audiodev"] = AUDIO
    return [Argument("-machine", value), _accelerator(machine, runtime)]


def _accelerator(machine: Machine, runtime: Runtime) -> Argument:
    value: QapiObject = {"accel": runtime.accelerator}
    if runtime.accelerator == "tcg" and machine.tcg_cache:
        value["tb-size"] = max(1, machine.tcg_cache // MIB)
    return Argument("-accel", value)


def processor(machine: Machine, runtime: Runtime) -> list[Argument]:
    """Return ``-cpu`` and ``-smp``."""
    model = cpu_model(machine, runtime.accelerator)
    return [Argument("-cpu", model), Argument("-smp", topology(machine.cpu))]


def cpu_model(machine: Machine, accelerator: str) -> str:
    """Return the model and features that the guest sees, as QEMU names them."""
    if machine.cpu.model != "auto":
        return machine.cpu.model
    return "host" if accelerator == "kvm" else TCG_CPU


def topology(cpu: Cpu) -> QapiObject:
    """Return vcpus as sockets × cores × threads; what is left open becomes cores."""
    total = cpu.max_vcpus or cpu.vcpus
    sockets, cores, threads = cpu.sockets, cpu.cores, cpu.threads
    if sockets and cores:
        threads = threads or total // (sockets * cores)
    threads = threads or 1
    if cores:
        sockets = sockets or total // (cores * threads)
    sockets = sockets or 1
    cores = cores or total // (sockets * threads)
    return {
        "cpus": cpu.vcpus,
        "maxcpus": total,
        "sockets": sockets,
        "cores": cores,
        "threads": threads,
    }


def memory(machine: Machine, runtime: Runtime, capabilities: Capabilities) -> list[Argument]:
    """Return the guest's memory, rounded down to what QEMU can give."""
    size = machine.memory // _MEMORY_STEP * _MEMORY_STEP
    made = [Argument("-m", {"size": format_size_exact(size)})]
    if not machine.numa:
        return [*made, user_object(_backend("ram", size, machine, runtime, capabilities))]
    for number, node in enumerate(machine.numa):
        made.append(
            user_object(_backend(f"ram{number}", node.memory, machine, runtime, capabilities))
        )
        numbers: list[QapiValue] = [part for part in node.vcpus.split(",") if part]
        value: QapiObject = {"nodeid": number, "cpus": numbers, "memdev": f"ram{number}"}
        made.append(Argument("-numa", {"type": "node", **value}))
    return made


def _backend(
    name: str, size: int, machine: Machine, runtime: Runtime, capabilities: Capabilities
) -> QapiObject:
    backend: QapiObject = {"qom-type": "memory-backend-ram", "id": name, "size": size}
    file = runtime.memory_file or machine.memory_path
    if file:
        backend["qom-type"] = "memory-backend-file"
        backend["mem-path"] = runtime.path(file)
        backend["share"] = runtime.memory_shared
    if machine.memory_prealloc:
        backend["prealloc"] = True
    if runtime.memory_file and not runtime.memory_shared:
        backend.update(_read_only_base(capabilities))
    return backend


def _read_only_base(capabilities: Capabilities) -> QapiObject:
    """The file of a state is mapped privately; newer QEMUs need not be able to write it."""
    return {"readonly": True, "rom": "off"} if capabilities.version >= READ_ONLY_BASE else {}
