"""What the compiler writes, the reader of old lines reads back to the same description."""

import msgspec
import pytest

from tests.qemu import machines
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.simplify import simplify
from wirt.qemu.legacy.translate import translate
from wirt.qemu.nic import nic_id
from wirt.spec.hardware import Tpm
from wirt.spec.machine import Machine


def facts_for(name: str, machine: Machine) -> Facts:
    """What the host decided for the golden machine, seen from the other side."""
    runtime = machines.runtime(name)
    netdevs = {f"{nic_id(nic, index)}-net": nic.backend for index, nic in enumerate(machine.nics)}
    return Facts(
        directory=runtime.directory,
        socket=runtime.socket,
        memory_file=runtime.memory_file,
        fd_images={fd: image for image, fd in runtime.fd_paths.items()},
        fd_sockets={str(fd): socket for socket, fd in runtime.socket_fds.items()},
        backends={name: netdevs[name] for name in runtime.uplinks},
        windows=("gtk", "sdl", "curses"),
        has_samba=True,
        has_kvm=runtime.accelerator == "kvm",
    )


def as_written(name: str, machine: Machine) -> Machine:
    """The description without what no line of QEMU says."""
    change = msgspec.structs.replace
    kvm = machines.runtime(name).accelerator == "kvm"
    model = machine.cpu.model.replace("auto", "host" if kvm else "qemu64")
    is_q35 = "q35" in machine.machine_type
    capabilities = machines.recorded_for(name)
    return change(
        machine,
        description="",
        balloon=machine.balloon and not machines.runtime(name).memory_file,
        autostart=False,
        accelerator="auto" if kvm else "tcg",
        machine_type=capabilities.resolve_machine(machine.machine_type),
        memory=machine.memory >> 13 << 13,
        cpu=change(machine.cpu, model=model),
        disks=tuple(
            change(disk, bus="sata" if is_q35 and disk.bus == "ide" else disk.bus)
            for disk in machine.disks
        ),
        nics=tuple(change(nic, rate=None, link=True) for nic in machine.nics),
        tpm=Tpm(),
        qemu=change(machine.qemu, args=(*machine.qemu.args, *tpm_words(name, machine))),
    )


def tpm_words(name: str, machine: Machine) -> tuple[str, ...]:
    """A TPM on a line is of a swtpm that somebody else started: its words stay."""
    if machine.tpm.version == "none":
        return ()
    fd = machines.runtime(name).tpm_fd
    place = f"fd={fd}" if fd >= 0 else "path=/run/wirt/tpm.sock,server=off"
    model = "tpm-tis" if machine.tpm.version == "1.2" else "tpm-crb"
    value = {"driver": model, "id": "tpm", "tpmdev": "tpm-state"}
    return (
        *("-chardev", f"socket,{place},id=tpm-channel"),
        *("-tpmdev", "type=emulator,id=tpm-state,chardev=tpm-channel"),
        *("-device", msgspec.json.encode(value).decode()),
    )


def in_order(machine: Machine) -> Machine:
    """Words for QEMU may change places, and a name is read from a title."""
    words = list(machine.qemu.args)
    options = sorted(zip(words[::2], words[1::2], strict=True))
    args = tuple(word for pair in options for word in pair)
    name = "x" if machine.title else machine.name
    qemu = msgspec.structs.replace(machine.qemu, args=args)
    return msgspec.structs.replace(machine, name=name, qemu=qemu)


@pytest.mark.parametrize("name", machines.names())
def test_a_golden_line_is_read_back_to_its_machine(name):
    machine = machines.load(name)
    capabilities = machines.recorded_for(name)
    line = machines.compiled(name)
    translation = translate(line, facts_for(name, machine), capabilities)
    assert translation.refused == ()
    wanted = simplify(as_written(name, machine), capabilities)
    assert in_order(translation.machine) == in_order(wanted)
