"""Starting a machine, in an order in which every step can be killed.

1. the record says ``starting``; 2. QEMU starts paused, holding the run lock; 3. the console
keeper is connected; 4. the record says ``running`` with the process; 5. the guest runs.
Killed before 4, the next command finds a QEMU that never ran its guest, ends it and starts
again. Killed between 4 and 5, the next command lets the guest go on.
"""

from __future__ import annotations

import os
import time

import msgspec
from msgspec.structs import replace

from wirt.catalog.image import REMOVABLE_ARGUMENTS, TCG_ARGUMENTS
from wirt.errors import NotFound, WirtError
from wirt.host.accel import Accelerator, choose_accelerator
from wirt.host.confine import confinement
from wirt.host.failpoint import failpoint
from wirt.host.holders import kill_holders
from wirt.host.process import detach, find_program
from wirt.host.process_id import ProcessId
from wirt.host.qemu_probe import probe
from wirt.protocols.qmp.messages import StatusInfo
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.block import is_removable
from wirt.qemu.compile import arguments
from wirt.qemu.nic import idle_port, nic_id, unplugged_links
from wirt.qemu.render import argv as render
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine
from wirt.spec.nic import Switch
from wirt.store.atomic import write_file
from wirt.store.layout import VmPaths
from wirt.store.locks import run_lock_is_held, take_run_lock
from wirt.store.machines import locked, prepare
from wirt.store.record import Record, Run, ServedImage, Wire, read_record, write_record
from wirt.vm import discard, firmware, ownership, preflight, state
from wirt.vm.context import Context
from wirt.vm.description import load_spec, summarise
from wirt.vm.disk_serving import (
    end_disk_server,
    ensure_disk_server,
    start_disk_server,
    with_server,
)
from wirt.vm.forking.handover import recover
from wirt.vm.keeping import console_names, start_keeper
from wirt.vm.launch import Launched, launch
from wirt.vm.memory import prepare_memory, remove_memory
from wirt.vm.monitor import connect
from wirt.vm.network.uplinks import Uplinks, open_forwards, release_all, uplinks_for
from wirt.vm.served import as_served, find_served, sockets
from wirt.vm.tpm import Tpm, await_end, joined, with_tpm

DEFAULT_BINARY = "qemu-system-x86_64"
QMP_SECONDS = 60.0


def start(context: Context, name: str, *, paused: bool = False) -> bool:
    """Start the machine; False if it ran already.

    Raises NotFound, SpecError, HostError, MissingDependency, Busy, QemuError, Timeout.
    """
    prepare(context.home)
    with locked(context.home, name, waiting=context.say) as paths:
        recover(context, paths)
        if _go_on(paths):
            return False
        start_locked(context, paths, paused=paused)
    if any(isinstance(wire.nic.backend, Switch) for wire in _wires(paths)):
        # Its switch may have been down, and others on it are to be plugged in again.
        from wirt.vm.network.mend import mend

        mend(context)
    return True


def _wires(paths: VmPaths) -> tuple[Wire, ...]:
    run = read_record(paths.record).run
    return run.wires if run is not None else ()


def _go_on(paths: VmPaths) -> bool:
    """True if the machine runs; finish or undo a start that was killed half-way."""
    record = read_record(paths.record)
    if not run_lock_is_held(paths.run_lock):
        return False
    if record.phase != "running":
        kill_holders(paths.run_lock)  # its guest never ran, so nothing is lost
        return False
    if record.run and record.run.served:
        ensure_disk_server(paths, record, load_spec(paths))
    if record.run and not record.run.paused_on_request:
        with connect(paths, record) as qmp:
            if qmp.execute("query-status", reply=StatusInfo).status == "prelaunch":
                qmp.execute("cont")
    return True


def start_locked(context: Context, paths: VmPaths, *, paused: bool = False) -> None:
    """Start a machine whose lock the caller holds and which is down."""
    machine = load_spec(paths)
    record = read_record(paths.record)
    capabilities = probe(machine.qemu.binary or DEFAULT_BINARY, context.home.cache)
    accelerator = choose_accelerator(
        machine.accelerator, cache_dir=context.home.cache, built_in=capabilities.accelerators
    )
    context.say(f"accelerator: {accelerator.name} ({accelerator.reason})")
    warning = preflight.check_memory(machine)
    if warning:
        context.say(warning)
    end_disk_server(record.run)
    await_end(record.run)
    images = find_served(paths, machine)
    machine = as_served(machine, images)
    for image in images:
        access = "read-only" if image.read_only else "read-write"
        context.say(f"disk {image.disk} is served to QEMU, {access}: {image.why}")
    served = {image.disk for image in images}
    preflight.check_images(paths, machine)
    discard.make_overlays(paths, machine)
    ownership.require_reachable(paths, machine, record, served)
    machine = preflight.with_free_ports(machine)
    if record.run is not None:  # it ended by itself, and nobody cleaned up behind it
        release_all(context, paths.name, record.run.wires)
    descriptors = ownership.descriptors_needed(
        paths, machine, record, {image.disk for image in images if not image.below}
    )
    memory = prepare_memory(context, paths, machine, record, accelerator)
    write_file(paths.started, msgspec.json.encode(machine), durable=False)
    machine = for_our_kernel(machine, record, accelerator.name)
    runtime = replace(
        runtime_of(paths, machine, accelerator),
        fd_paths={image: fd for image, (fd, _) in descriptors.items()},
        memory_file=memory,
        memory_shared=bool(memory),
    )
    try:
        with (
            uplinks_for(context, machine) as uplinks,
            joined(machine, paths.tpm, record) as tpm,
        ):
            _start(
                paths, machine, record, capabilities, accelerator, runtime, images, uplinks, tpm,
                paused=paused,
            )  # fmt: skip
    finally:
        ownership.close_all(descriptors)
        discard.remove_overlays(paths, machine)


def _start(
    paths: VmPaths,
    machine: Machine,
    record: Record,
    capabilities: Capabilities,
    accelerator: Accelerator,
    runtime: Runtime,
    images: tuple[ServedImage, ...],
    uplinks: Uplinks,
    tpm: Tpm | None,
    *,
    paused: bool,
) -> None:
    runtime = replace(runtime, uplinks=uplinks.values, tpm_fd=tpm.qemu_fd if tpm else -1)
    line = command_line(machine, runtime, capabilities, record)
    run = Run(
        pid=0,
        start_ticks=0,
        boot_id=state.boot_id(),
        started=time.time(),
        accelerator=accelerator.name,
        accelerator_reason=accelerator.reason,
        argv=tuple(line),
        paused_on_request=paused,
        forwards=open_forwards(machine.nics),
        wires=tuple(uplinks.wires),
        memory="file" if runtime.memory_file else "anonymous",
        served=images,
    )
    ownership.make_runtime(paths, record)
    ownership.give(paths, record)
    try:
        run = with_server(run, start_disk_server(paths, record, machine, images))
        failpoint("disks-served")
        record = msgspec.structs.replace(record, phase="starting", run=run, ended="")
        write_record(paths.record, record)
        launched = _launch(paths, line, [*runtime.fd_paths.values(), *uplinks.fds], tpm)
        try:
            _settle(paths, machine, record, run, launched)
        except BaseException:
            launched.kill()
            raise
        finally:
            launched.close()
    except BaseException as error:
        end_disk_server(run, patience=1.0)
        _record_failure(paths, record, error)
        raise


def _launch(paths: VmPaths, line: list[str], fds: list[int], tpm: Tpm | None) -> Launched:
    lock = take_run_lock(paths.run_lock)
    try:
        return launch(line, paths.socket("qmp"), [lock, *fds], tpm, timeout=QMP_SECONDS)
    finally:
        os.close(lock)


def _settle(paths: VmPaths, machine: Machine, record: Record, run: Run, launched: Launched) -> None:
    process = ProcessId.of(launched.process.pid)
    if process is None:
        raise NotFound(f"QEMU {launched.process.pid} is gone")
    start_keeper(paths, record, console_names(machine), launched.messages_fd)
    run = msgspec.structs.replace(run, pid=process.pid, start_ticks=process.start_ticks)
    run = with_tpm(run, launched.tpm)
    summary = summarise(paths, machine)
    write_record(
        paths.record,
        msgspec.structs.replace(record, phase="running", run=run, summary=summary),
    )
    for wire in run.wires:
        if wire.hub is not None:
            card = nic_id(wire.nic, wire.index)
            launched.qmp.execute("netdev_add", idle_port(card, wire.hub))
    for link in unplugged_links(machine.nics):
        launched.qmp.execute("set_link", link)
    if not run.paused_on_request:
        launched.qmp.execute("cont")
    detach(launched.process)


def _record_failure(paths: VmPaths, record: Record, error: BaseException) -> None:
    import shutil

    shutil.rmtree(paths.runtime, ignore_errors=True)
    remove_memory(paths)
    why = error.message if isinstance(error, WirtError) else "the start was interrupted"
    write_record(
        paths.record,
        msgspec.structs.replace(record, phase="stopped", run=None, ended=f"did not start: {why}"),
    )


def for_our_kernel(machine: Machine, record: Record, accelerator: str) -> Machine:
    """Tell the kernel of an image of ours what this machine is.

    It need not guard a CPU that is emulated, and must look at drives that have a tray; unless
    the machine's own line, which comes last, says otherwise.
    """
    boot = machine.boot
    if not record.image_id or not boot.cmdline:
        return machine
    words = []
    if accelerator == "tcg":
        words.append(TCG_ARGUMENTS)
    if any(is_removable(disk) for disk in machine.disks):
        words.append(REMOVABLE_ARGUMENTS)
    boot = msgspec.structs.replace(boot, cmdline=" ".join([*words, boot.cmdline]))
    return msgspec.structs.replace(machine, boot=boot)


def runtime_of(paths: VmPaths, machine: Machine, accelerator: Accelerator) -> Runtime:
    """Return what the host decides for this machine."""
    files = firmware.find(machine.firmware)
    variables = firmware.ensure_variables(paths, files.variables) if files else ""
    return Runtime(
        accelerator=accelerator.name,
        directory=paths.root,
        socket=paths.socket,
        firmware_code=files.code if files else "",
        uefi_variables=variables,
        host_devices=preflight.host_devices(paths, machine),
        cd_drives=preflight.cd_drives(paths, machine),
        served=sockets(paths, machine, find_served(paths, machine)),
        overlays=discard.overlay_paths(paths, machine),
        paused=True,
    )


def command_line(
    machine: Machine, runtime: Runtime, capabilities: Capabilities, record: Record
) -> list[str]:
    """Return QEMU's command line with what confines it in front."""
    binary = find_program(machine.qemu.binary or DEFAULT_BINARY)
    line = render(binary, arguments(machine, runtime, capabilities))
    kvm = runtime.accelerator == "kvm"
    return [*confinement(record.uid, kvm=kvm, group=record.group), *line]
