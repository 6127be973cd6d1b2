"""From a machine's description to the arguments of QEMU: a pure function.

Nothing is left to QEMU's defaults (``-nodefaults``): every device is named, with an explicit
identifier and address, in forms that QEMU 7.2 to 11 accept without a warning.
"""

from __future__ import annotations

from wirt.errors import MissingDependency, SpecError
from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import Argument, QapiObject, blockdev, user_object
from wirt.qemu import block, chardev, net, screen, small
from wirt.qemu.board import Board
from wirt.qemu.boot import boot_arguments, disk_boot_indexes, nic_boot_indexes
from wirt.qemu.runtime import Runtime
from wirt.spec.hardware import Cpu
from wirt.spec.machine import Machine
from wirt.units import format_size_exact

TCG_CPU = "qemu64"
"""Under TCG the smallest model translates fastest, and every distribution still runs on it."""

_PACKAGES = {
    "qxl-vga": "qemu-system-modules-spice",
    "virtio-vga": "qemu-system-x86",
    "usb-host": "qemu-system-x86",
}


def arguments(
    machine: Machine, runtime: Runtime, capabilities: Capabilities
) -> tuple[Argument, ...]:
    """Return QEMU's arguments. Raises SpecError, and MissingDependency for absent devices."""
    board = Board(machine.machine_type)
    disks = block.disk_arguments(machine.disks, disk_boot_indexes(machine), board, runtime)
    nics = net.nic_arguments(machine.nics, nic_boot_indexes(machine), board)
    made = (
        *_identity(machine),
        *_board(machine, runtime, capabilities),
        *_processor(machine, runtime),
        *_memory(machine, runtime),
        *_firmware(machine, runtime),
        *boot_arguments(machine, runtime),
        *chardev.monitor(runtime),
        *board.ports(),
        *screen.video(machine.video, board),
        *screen.displays(machine.displays, runtime),
        *small.usb(machine, board),
        *disks,
        *nics,
        *chardev.serials(machine.serials, runtime),
        *chardev.channels(machine.channels, board, runtime),
        *(small.entropy(board) if machine.rng else ()),
        *(small.balloon(board) if machine.balloon else ()),
        *(small.generation_id(runtime) if machine.vmgenid else ()),
        *small.watchdog(machine, board),
        *small.sound(machine, board),
        *_running(machine, runtime),
        *(Argument(word) for word in machine.qemu.args),
    )
    _check(made, capabilities)
    return made


def _identity(machine: Machine) -> list[Argument]:
    arguments = [Argument("-name", {"guest": machine.name, "debug-threads": True})]
    if machine.uuid:
        arguments.append(Argument("-uuid", machine.uuid))
    return [*arguments, Argument("-nodefaults"), Argument("-no-user-config")]


def _board(machine: Machine, runtime: Runtime, capabilities: Capabilities) -> list[Argument]:
    name, _, options = capabilities.resolve_machine(machine.machine_type).partition(",")
    value: QapiObject = {"type": name, "memory-backend": "ram"}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        value[key] = text or "on"
    if not machine.hpet:
        value["hpet"] = False
    if not machine.acpi:
        value["acpi"] = False
    if machine.firmware.type == "uefi":
        value["pflash0"] = "uefi-code"
        value["pflash1"] = "uefi-variables"
    if machine.firmware.secure_boot:
        value["smm"] = True
    if "pcspk" in machine.sound:
        value["pcspk-audiodev"] = small.AUDIO
    return [Argument("-machine", value), _accelerator(machine, runtime)]


def _accelerator(machine: Machine, runtime: Runtime) -> Argument:
    value: QapiObject = {"accel": runtime.accelerator}
    if runtime.accelerator == "tcg" and machine.tcg_cache:
        value["tb-size"] = max(1, machine.tcg_cache >> 20)
    return Argument("-accel", value)


def _processor(machine: Machine, runtime: Runtime) -> list[Argument]:
    model = machine.cpu.model
    if model == "auto":
        model = "host" if runtime.accelerator == "kvm" else TCG_CPU
    return [Argument("-cpu", model), Argument("-smp", topology(machine.cpu))]


def topology(cpu: Cpu) -> QapiObject:
    """Return vcpus as sockets × cores × threads; what is left open becomes cores."""
    total = cpu.max_vcpus or cpu.vcpus
    threads = cpu.threads or 1
    if cpu.cores or not cpu.sockets:
        cores = cpu.cores or max(1, total // (threads * (cpu.sockets or 1)))
        sockets = cpu.sockets or max(1, total // (cores * threads))
    else:
        sockets = cpu.sockets
        cores = max(1, total // (sockets * threads))
    if cpu.sockets and cpu.cores and not cpu.threads:
        threads = max(1, total // (sockets * cores))
    return {
        "cpus": cpu.vcpus,
        "maxcpus": total,
        "sockets": sockets,
        "cores": cores,
        "threads": threads,
    }


def _memory(machine: Machine, runtime: Runtime) -> list[Argument]:
    backend: QapiObject = {"qom-type": "memory-backend-ram", "id": "ram", "size": machine.memory}
    if runtime.memory_file:
        backend["qom-type"] = "memory-backend-file"
        backend["mem-path"] = runtime.memory_file
        backend["share"] = runtime.memory_shared
    return [
        Argument("-m", {"size": format_size_exact(machine.memory)}),
        user_object(backend),
    ]


def _firmware(machine: Machine, runtime: Runtime) -> list[Argument]:
    if machine.firmware.type == "bios":
        if machine.firmware.code:
            return [Argument("-bios", runtime.path(machine.firmware.code))]
        return []
    made = [
        *_flash("uefi-code", runtime.firmware_code, read_only=True),
        *_flash("uefi-variables", runtime.uefi_variables, read_only=False),
    ]
    if machine.firmware.secure_boot:
        secure: QapiObject = {"driver": "cfi.pflash01", "property": "secure", "value": True}
        made.append(Argument("-global", secure))
    return made


def _flash(name: str, path: str, *, read_only: bool) -> list[Argument]:
    file: QapiObject = {"driver": "file", "node-name": f"{name}-file", "filename": path}
    raw: QapiObject = {"driver": "raw", "node-name": name, "file": f"{name}-file"}
    return [blockdev({**node, "read-only": read_only}) for node in (file, raw)]


def _running(machine: Machine, runtime: Runtime) -> list[Argument]:
    rtc: QapiObject = {"base": machine.rtc.base, "clock": machine.rtc.clock}
    if machine.rtc.drift_fix:
        rtc["driftfix"] = "slew"
    action: QapiObject = {"reboot": machine.actions.reboot, "panic": machine.actions.panic}
    if machine.watchdog is not None:
        action["watchdog"] = machine.watchdog.action
    made = [Argument("-rtc", rtc), Argument("-action", action)]
    if runtime.sandbox:
        made.append(Argument("-sandbox", f"on,{_SANDBOX}"))
    made.append(Argument("-msg", {"timestamp": True}))
    if runtime.incoming:
        made.append(Argument("-incoming", "defer"))
    if runtime.paused:
        made.append(Argument("-S"))
    return made


_SANDBOX = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def _check(made: tuple[Argument, ...], capabilities: Capabilities) -> None:
    for argument in made:
        value = argument.value
        if not argument.json or not isinstance(value, dict):
            continue
        if argument.option == "-device" and not capabilities.has_device(str(value["driver"])):
            raise _missing(str(value["driver"]), capabilities)
        if argument.option == "-blockdev" and not capabilities.accepts(
            "blockdev-add", str(value["driver"])
        ):
            raise SpecError(
                f"this QEMU has no driver for {value['driver']} images",
                key="disks",
                hint="convert it: wirt img convert -O qcow2 OLD NEW",
            )


def _missing(driver: str, capabilities: Capabilities) -> MissingDependency:
    version = ".".join(map(str, capabilities.version))
    package = _PACKAGES.get(driver, "qemu-system-x86 qemu-system-gui")
    return MissingDependency(
        f"this QEMU ({version}) has no device {driver}", hint=f"apt install {package}"
    )
