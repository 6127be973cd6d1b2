"""Cables between switches: ``wirt cable create``, cut, mended, shaped while frames pass."""

from __future__ import annotations

import json
import os
import re
import sys
import time

import msgspec

from wirt.errors import HostError, NotFound, Timeout, UsageError, WirtError
from wirt.host.confine import switch_uid
from wirt.host.process import with_parent
from wirt.net import cable, cable_keeper, helper, switch
from wirt.net.cable import End, LocalEnd, PathEnd, SshEnd
from wirt.store import wires
from wirt.store.layout import NetworkPaths
from wirt.store.locks import run_lock_is_held
from wirt.store.wires import CableRecord, Shape, SwitchRecord
from wirt.typed_json import decode
from wirt.vm.context import Context
from wirt.vm.network import switches
from wirt.vm.network.processes import end_all, recorded, tag

MAX_DELAY = 60_000.0
_READY_SECONDS = 20.0
_STATUS_BYTES = 1 << 16


class CableFacts(msgspec.Struct, frozen=True):
    """A cable as it is now. ``status``: ``up``, ``cut``, ``down``, or ``waiting`` and why."""

    name: str
    a: str
    b: str
    status: str
    why: str
    shape: Shape


class _Status(msgspec.Struct):
    state: str = "down"
    why: str = ""


def check_shape(shape: Shape) -> Shape:
    """Return ``shape``. Raises UsageError for what no wire does."""
    if not 0 <= shape.delay <= MAX_DELAY or not 0 <= shape.jitter <= MAX_DELAY:
        raise UsageError("delay and jitter are 0 to 60 s", hint="--delay 50ms --jitter 5ms")
    if shape.jitter > shape.delay:
        raise UsageError("jitter is at most the delay", hint="--delay 50ms --jitter 5ms")
    if not 0 <= shape.loss <= 100:
        raise UsageError("loss is 0 to 100 percent", hint="--loss 10")
    if shape.bandwidth and shape.bandwidth < 1000:
        raise UsageError("the bandwidth is at least 1000 bytes a second", hint="--bandwidth 1M")
    return shape


def create_cable(
    context: Context, name: str, a: str, b: str, shape: Shape, ssh_options: tuple[str, ...] = ()
) -> CableRecord:
    """Lay a cable from a switch of ours to another one; nothing stays if that fails.

    Raises AlreadyExists, UsageError, NotFound, HostError, MissingDependency.
    """
    first, second = cable.parse_end(a), cable.parse_end(b)
    if isinstance(first, SshEnd):
        raise UsageError("the first end of a cable is here", hint=f"wirt cable create {b} {a}")
    if first == second:
        raise UsageError("a cable from a switch to itself makes frames run in circles")
    if isinstance(second, SshEnd):
        cable.require_remote(second, ssh_options)
    record = CableRecord(
        created=time.time(), a=a, b=b, shape=check_shape(shape), ssh_options=ssh_options
    )
    with wires.new(context.home, "cable", name, record) as paths:
        try:
            return _lay(context, paths, name, record)
        except BaseException:
            end_all(paths)
            raise


def ensure_cable(context: Context, name: str) -> bool:
    """Make sure that a cable that is not cut is held; True if it had to be laid anew."""
    with wires.locked(context.home, "cable", name, waiting=context.say) as paths:
        record = wires.read(paths, CableRecord)
        if record.cut or run_lock_is_held(paths.run_lock):
            return False
        _lay(context, paths, name, record)
        return True


def cut_cable(context: Context, name: str) -> None:
    """Cut a cable until it is mended."""
    with wires.locked(context.home, "cable", name, waiting=context.say) as paths:
        end_all(paths)
        record = wires.read(paths, CableRecord)
        wires.write(paths, msgspec.structs.replace(record, cut=True, process=None))


def mend_cable(context: Context, name: str) -> None:
    """Put a cable that was cut together again."""
    with wires.locked(context.home, "cable", name, waiting=context.say) as paths:
        record = msgspec.structs.replace(wires.read(paths, CableRecord), cut=False)
        if not run_lock_is_held(paths.run_lock):
            record = _lay(context, paths, name, record)
        wires.write(paths, record)


def shape_cable(context: Context, name: str, shape: Shape) -> None:
    """Change what a cable does to frames, while they pass. Raises NotFound, UsageError."""
    check_shape(shape)
    with wires.locked(context.home, "cable", name, waiting=context.say) as paths:
        record = msgspec.structs.replace(wires.read(paths, CableRecord), shape=shape)
        console = paths.file("filter.sock")
        if record.cut or not run_lock_is_held(paths.run_lock):
            pass
        elif os.path.exists(console):
            cable.change_filter(console, _effect(shape))
        else:  # there is no filter in it yet
            end_all(paths)
            record = _lay(context, paths, name, record)
        wires.write(paths, record)


def _effect(shape: Shape) -> cable.Effect:
    return cable.Effect(shape.delay, shape.jitter, shape.loss, shape.bandwidth)


def remove_cable(context: Context, name: str) -> None:
    """Remove a cable."""
    with wires.locked(context.home, "cable", name, waiting=context.say) as paths:
        end_all(paths)
        wires.remove(context.home, paths)


def cable_facts(context: Context, name: str) -> CableFacts:
    """Return what a cable is doing."""
    paths = wires.find(context.home, "cable", name)
    record = wires.read(paths, CableRecord)
    status = _Status("cut") if record.cut else _Status()
    if run_lock_is_held(paths.run_lock):
        status = _read_status(paths)
    return CableFacts(name, record.a, record.b, status.state, status.why, record.shape)


def _read_status(paths: NetworkPaths) -> _Status:
    try:
        with open(paths.file("status"), "rb") as file:
            return decode(file.read(_STATUS_BYTES), _Status)
    except (OSError, msgspec.MsgspecError):
        return _Status("up")


def _lay(context: Context, paths: NetworkPaths, name: str, record: CableRecord) -> CableRecord:
    first, second = cable.parse_end(record.a), cable.parse_end(record.b)
    for end in (first, second):
        if isinstance(end, LocalEnd):
            switches.ensure_switch(context, end.switch)
        elif isinstance(end, PathEnd) and not os.path.exists(os.path.join(end.path, "ctl")):
            raise NotFound(f"there is no switch at {end.path}", hint="its directory has a ctl")
    end_all(paths)
    # As the switches' user, whom both plugs and the filter belong to.
    wires.make_runtime(paths, switch_uid() if os.geteuid() == 0 else 0)
    programs = _programs(context, paths, name, record)
    settings_fd = os.memfd_create("wirt-cable")
    try:
        os.write(settings_fd, _settings(paths, programs))
        os.lseek(settings_fd, 0, os.SEEK_SET)
        with tag(paths) as lock:
            process = helper.start(
                [sys.executable, "-I", "-S", cable_keeper.__file__, str(settings_fd)],
                what="the cable keeper",
                ready=lambda _: _is_ready(context, paths, name, (first, second)),
                inherit=(lock, settings_fd),
                timeout=_READY_SECONDS,
            )
    except Timeout as error:
        why = _read_status(paths).why or "its programs say nothing"
        raise HostError(f"the cable {name} does not hold: {why}") from error
    finally:
        os.close(settings_fd)
    record = msgspec.structs.replace(record, process=recorded(process))
    wires.write(paths, record)
    return record


def _settings(paths: NetworkPaths, programs: list[list[str]]) -> bytes:
    return json.dumps({"programs": programs, "status": paths.file("status")}).encode()


def _programs(
    context: Context, paths: NetworkPaths, name: str, record: CableRecord
) -> list[list[str]]:
    first, second = cable.parse_end(record.a), cable.parse_end(record.b)
    shaped = record.shape != Shape()
    ours, theirs = _plug(context, first), _plug(context, second)
    if ours and theirs and not shaped and ours.uid == theirs.uid:
        return [cable.joining_program(ours, theirs, text=plug_text(name))]
    row = [cable.plug_program(plug, text=plug_text(name)) for plug in (ours, theirs) if plug]
    if isinstance(second, SshEnd):
        row.append(cable.remote_program(second, record.ssh_options))
    if shaped:
        uid = switch_uid() if os.geteuid() == 0 else 0
        words = cable.filter_words(_effect(record.shape))
        row.insert(1, cable.filter_program(paths.file("filter.sock"), words, uid=uid))
    return row


def _plug(context: Context, end: End) -> cable.Plug | None:
    """Return the way into the switch of an end; None for one on another host."""
    match end:
        case LocalEnd():
            paths = wires.find(context.home, "switch", end.switch)
            record = wires.read(paths, SwitchRecord)
            return cable.Plug(switches.sockets_of(paths).control, end.port, record.uid)
        case PathEnd():
            return cable.Plug(end.path)
        case SshEnd():
            return None


def _is_ready(context: Context, paths: NetworkPaths, name: str, ends: tuple[End, End]) -> bool:
    """True when every switch of ours has the plug, and the programs did not end meanwhile."""
    if not os.path.exists(paths.file("status")) or _read_status(paths).state != "up":
        return False
    for end in ends:
        if isinstance(end, LocalEnd) and not _has_plug(context, end.switch, plug_text(name)):
            return False
    return True


def _has_plug(context: Context, name: str, text: str) -> bool:
    sockets = switches.sockets_of(wires.find(context.home, "switch", name))
    try:
        return any(text in plug for port in switch.ports(sockets) for plug in port.plugs)
    except WirtError:
        return False


def switch_plug(context: Context, name: str) -> list[str]:
    """Return what this process becomes to join its input and output to a switch of ours."""
    record = switches.ensure_switch(context, name)
    paths = wires.find(context.home, "switch", name)
    plug = cable.Plug(switches.sockets_of(paths).control, 0, record.uid)
    return with_parent(cable.plug_program(plug, text="wirt switch plug"), os.getppid())


def cable_name(a: str, b: str) -> str:
    """Return a name for a cable between two ends."""
    words = [word for end in (a, b) for word in re.findall(r"[A-Za-z0-9._]+", end)]
    return "-".join(word for word in words if word not in {"ssh", "vde"})[:63]


def plug_text(name: str) -> str:
    """Return by what a switch knows the plug of a cable."""
    return f"wirt cable {name}"
