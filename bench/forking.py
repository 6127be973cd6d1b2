"""Forks of the built Debian guest, beside a cold boot and a full-stream restore of the same.

A fork is one of the template that ``wirt run`` keeps, made through the library: from the call to
the vCPU running, to the agent's ping, and (of another one) to ``true`` executed; ``wirt run`` as a
process, from its start to its end. Its private memory is what is anonymous in it: pages of the
template that only one process maps are counted as its own by the kernel. The restores are
QEMU's own (the same machine saved with its memory as one stream, which a fresh QEMU loads) and
``virsh restore`` of the same guest. The pause is that of machines that have just booted, with
little and with much memory in use: a kernel and a shell, since each can be handed over once.
What a boot and a template left to be written is on the disk before anything is measured: the
machine is idle.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import virsh
from bench.pairs import Row, run
from tests.guests.tiny import Shell, build_initrd, console
from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.image import StoredImage
from wirt.catalog.recipe import Recipe
from wirt.protocols.qga.client import AgentClient
from wirt.store.layout import home_at
from wirt.store.machines import machine_names
from wirt.store.record import read_record
from wirt.store.states import State, process_label, release
from wirt.vm.channels import AGENT
from wirt.vm.context import Context
from wirt.vm.create import Wish as Make
from wirt.vm.create import create
from wirt.vm.execute import Order, execute
from wirt.vm.forking.fork import spawn_many
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.spawn import Wish, spawn_from
from wirt.vm.oneshot import ensure_warm, for_command
from wirt.vm.remove import remove
from wirt.vm.source import resolve
from wirt.vm.start import start
from wirt.vm.template import find_warm
from wirt.vm.wait import wait_for_guest

TITLE = "Forks of a Debian guest with 512 MiB"
ROUNDS = int(os.environ.get("WIRT_BENCH_ROUNDS", "10"))
MANY = int(os.environ.get("WIRT_BENCH_FORKS", "20"))
SETTINGS = {"memory": "512M", "displays": []}
_MIB = 1 << 20


def rows() -> list[Row]:
    with _home() as context:
        cold = _cold_boot(context, "src")
        stream = [_stream_restore(context, number) for number in range(max(2, ROUNDS // 3))]
        remove(context, "src", force=True)
        template = _template(context)
        _answered(context, template)
        made = [_answered(context, template) for _ in range(ROUNDS)]
        running, ping, private = (list(column) for column in zip(*made, strict=True))
        executed = [_executed(context, template) for _ in range(ROUNDS)]
        many, share = _many(context, template)
        warm = _warm_runs(context)
        little = [_pause(context, "512M", 0) for _ in range(ROUNDS)]
        much = [_pause(context, "2G", 1536) for _ in range(ROUNDS)]
        libvirt = _virsh(context)
    loaded, answered = [one for one, _ in libvirt], [one for _, one in libvirt]
    return [
        _row("fork to vCPU running", running, "full-stream restore, running", stream, "<= 0.10 s"),
        _row("fork to agent's ping", ping, "cold boot to the helper", [cold], "<= 0.25 s"),
        _row("fork to `true` executed", executed, "cold boot to the helper", [cold], "<= 0.35 s"),
        _row("wirt run IMAGE -- true, warm", warm, "cold boot to the helper", [cold], "<= 0.40 s"),
        *_against_virsh(running, ping, loaded, answered),
        _row("pause of the source, 512 MiB", little, "cold boot", [cold], "<= 0.040 s"),
        _row("pause of the source, 1.5 GiB in use", much, "512 MiB", little, "<= 0.040 s, x 1"),
        _row(f"{MANY} forks answered", [many], "cold boot of one", [cold], "<= 5 s"),
        Row("private memory of a fork after its ping", "MiB in column MiB", None, 1.0, 0.0,
            len(private), "<= 32 MiB", statistics.median(private)),
        Row(f"PSS of each of {MANY} forks", "MiB in column MiB", None, 1.0, 0.0, 1, "", share),
    ]  # fmt: skip


@contextmanager
def _home() -> Iterator[Context]:
    cache = Path(os.environ.get("WIRT_TEST_CACHE") or f"/var/tmp/wirt-tests-{os.geteuid()}")
    cache.mkdir(mode=0o711, parents=True, exist_ok=True)
    build_image(Catalog(cache / "images"), Recipe(distribution="debian:12"))
    root = tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp")
    os.chmod(root, 0o711)
    os.symlink(cache / "images", os.path.join(root, "images"))
    context = Context(home_at(root))
    try:
        yield context
    finally:
        for name in machine_names(context.home):
            remove(context, name, force=True)
        shutil.rmtree(root)


def _cold_boot(context: Context, name: str) -> float:
    create(context, name, resolve(context, "debian:12"), Make(settings=SETTINGS))
    begin = time.perf_counter()
    start(context, name)
    wait_for_guest(context, name, timeout=1200)
    return time.perf_counter() - begin


def _template(context: Context) -> State:
    image = resolve(context, "debian:12")
    wish = for_command(image, Make(settings={"memory": SETTINGS["memory"]}))
    sought = ensure_warm(context, image, wish, timeout=1200)
    state = find_warm(context, sought)
    if state is None:
        raise RuntimeError("wirt kept no template")
    os.sync()
    return state


def _warm_runs(context: Context) -> list[float]:
    """The first boots and leaves a template, which is not measured."""
    line = [sys.executable, "-m", "wirt", "run", "debian:12", "--", "true"]
    env = {"WIRT_HOME": context.home.root}
    run([*line[:5], "--timeout", "20m", *line[5:]], env)
    run(line, env)
    os.sync()
    return [run(line, env).wall for _ in range(ROUNDS)]


def _pause(context: Context, memory: str, in_use: int) -> float:
    """Return what the handing over of a machine costs it; ``in_use`` MiB were written to."""
    image, initrd = _image(context), os.path.join(context.home.root, "tiny")
    if not os.path.exists(initrd):
        build_initrd(image, Path(initrd))
        os.chmod(initrd, 0o444)
    boot = {"kernel": os.fspath(image.kernel), "initrd": initrd,
            "cmdline": "console=ttyS0 quiet no_timer_check"}  # fmt: skip
    settings = {"memory": memory, "displays": [], "boot": boot}
    create(context, "tiny", None, Make(settings=settings, disk_size=1 << 20))
    start(context, "tiny")
    shell = Shell(console(context.home.vm("tiny")))
    shell(
        f"mount -t tmpfs -o size=100% none /tmp && dd if=/dev/zero of=/tmp/x bs=1M count={in_use}"
    )
    shell.close()
    os.sync()
    frozen = freeze(context, "tiny")
    if frozen.method != "freeze":
        raise RuntimeError(f"the machine was not handed over: {frozen.notes}")
    release(frozen.state, process_label())
    remove(context, "tiny", force=True)
    return frozen.pause


def _virsh(context: Context) -> list[tuple[float, float]]:
    why = virsh.absent()
    if why:
        print(f"virsh restore: {why}")
        return []
    return virsh.restores(_image(context), max(2, ROUNDS // 2))


def _against_virsh(
    running: list[float], ping: list[float], loaded: list[float], answered: list[float]
) -> list[Row]:
    if not loaded:
        return []
    return [
        _row("fork to vCPU running", running, "virsh restore", loaded, ""),
        _row("fork to agent's ping", ping, "virsh restore and ping", answered, ""),
    ]


def _image(context: Context) -> StoredImage:
    return Catalog(Path(context.home.images)).find("debian:12")


def _answered(context: Context, frozen: State) -> tuple[float, float, float]:
    begin = time.perf_counter()
    made = spawn_from(context, frozen, "one")
    with AgentClient.connect(context.home.vm("one").socket(AGENT), timeout=60) as agent:
        agent.ping()
        ping = time.perf_counter() - begin
    private = _smaps(context, "one", "Anonymous") / _MIB
    remove(context, "one", force=True)
    return made.running, ping, private


def _executed(context: Context, frozen: State) -> float:
    """The command comes by the port over which the fork got its identity, as in ``wirt run``."""
    begin = time.perf_counter()
    made = spawn_from(context, frozen, "one", Wish(keep_port=True))
    if made.port is None:
        raise RuntimeError("the guest's helper did not answer")
    with made.port:
        execute(context, "one", Order(["true"]), made.port)
    wall = time.perf_counter() - begin
    remove(context, "one", force=True)
    return wall


def _many(context: Context, frozen: State) -> tuple[float, float]:
    names = [f"many{number}" for number in range(MANY)]
    begin = time.perf_counter()
    spawn_many(context, frozen, names, all_or_nothing=True)
    wall = time.perf_counter() - begin
    shares = [_smaps(context, name, "Pss") / _MIB for name in names]
    for name in names:
        remove(context, name, force=True)
    return wall, statistics.median(shares)


def _smaps(context: Context, name: str, field: str) -> int:
    run = read_record(context.home.vm(name).record).run
    if run is None:
        return 0
    lines = Path(f"/proc/{run.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _stream_restore(context: Context, number: int) -> float:
    """Freeze a machine without shared memory: its forks load one stream, as a restore does."""
    with _in_devices():
        frozen = freeze(context, "src", keep_process=True)
    name = f"stream{number}"
    made = spawn_from(context, frozen.state, name)
    remove(context, name, force=True)
    release(frozen.state, process_label())
    return made.running


@contextmanager
def _in_devices() -> Iterator[None]:
    """No room for a memory file: then the memory comes with the devices."""
    from wirt.vm.forking import stream

    real: Callable[..., int] = stream.room
    stream.room = lambda _home: 0
    try:
        yield
    finally:
        stream.room = real


def _row(what: str, ours: list[float], peer: str, theirs: list[float], target: str) -> Row:
    wall = statistics.median(ours)
    ratio = wall / statistics.median(theirs) if theirs else 0.0
    return Row(what, peer, None, ratio, wall, len(ours), target)
