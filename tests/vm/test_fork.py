"""Forks of a real guest: who they are, and that none sees what another writes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time

import msgspec
import pytest

from tests.vm.conftest import Cli, scratch_home
from wirt.protocols.qga.client import AgentClient
from wirt.store import states
from wirt.store.atomic import write_file
from wirt.store.record import read_record
from wirt.vm.channels import AGENT
from wirt.vm.create import Wish as Make
from wirt.vm.create import create
from wirt.vm.execute import Order, execute
from wirt.vm.forking.fork import fork
from wirt.vm.forking.freeze import freeze
from wirt.vm.forking.spawn import Wish, spawn_from
from wirt.vm.guest_install import install_helper
from wirt.vm.source import DiskFile, resolve
from wirt.vm.start import start
from wirt.vm.vm import Vm

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("fork")]

WIRE = {"type": "socket", "multicast": "230.0.0.1:41234", "local_address": "127.0.0.1"}
COUNTER = """\
i=0; while :; do i=$((i+1)); echo $i >>/dev/shm/counter; sleep 0.05; done"""


@pytest.fixture(scope="module")
def source(guest_image):
    """A machine that has booted once; on a private network and on a shared wire."""
    with scratch_home(guest_image.directory.parent) as context:
        nics = [
            {"backend": {"type": "user", "forwards": [{"host_port": 0, "guest_port": 22}]}},
            {"backend": WIRE},
        ]
        settings = {"memory": "512M", "nics": nics, "displays": []}
        create(context, "src", resolve(context, "debian:12"), Make(settings=settings))
        start(context, "src")
        vm = Vm("src", context)
        vm.wait(timeout=1500)
        vm.exec(["sh", "-c", f"setsid sh -c '{COUNTER}' >/dev/null 2>&1 </dev/null &"])
        yield vm


def run(vm, name, script):
    return Vm(name, vm.context).exec(["sh", "-c", script], timeout=120).text


def counter(vm, name="src"):
    return [int(line) for line in run(vm, name, "cat /dev/shm/counter").split()]


def test_forks_share_a_past_and_nothing_else(source):
    blob = hashlib.sha256(run(source, "src", blob_of("shared")).encode()).hexdigest()
    before = counter(source)
    result = fork(source.context, "src", ["one", "two"])
    assert result.method == "freeze"
    deep = fork(source.context, "one", ["deep"])
    assert deep.method == "stream"
    everyone = ["src", "one", "two", "deep"]
    try:
        after = {name: counter(source, name) for name in everyone}
        for name, seen in after.items():
            assert seen[: len(before)] == before, name
            assert seen == list(range(1, len(seen) + 1)), name
            assert len(seen) > len(before), name
        _see_only_their_own(source, everyone, blob)
        _are_distinct(source, everyone[1:], [*result.forks, *deep.forks])
        _stand_by_themselves(source)
    finally:
        for name in everyone[1:]:
            Vm(name, source.context).remove(force=True)


def blob_of(word):
    """Lay ``word`` many times into memory and on the disk; print what is read back."""
    return (
        f"yes {word} | head -c 3000000 >/dev/shm/blob; yes {word} | head -c 3000000 >/root/blob; "
        f"sync; {READ}"
    )


READ = "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/shm/blob; sha256sum </root/blob"


def _see_only_their_own(vm, everyone, blob):
    for name in everyone:
        assert hashlib.sha256(run(vm, name, READ).encode()).hexdigest() == blob, name
    wrote = {name: run(vm, name, blob_of(name)) for name in everyone}
    assert len(set(wrote.values())) == len(everyone)
    for name in everyone:
        assert run(vm, name, READ) == wrote[name], name


def _are_distinct(vm, names, spawned):
    script = (
        "cat /proc/sys/kernel/random/uuid; hostname; cat /etc/machine-id; "
        "cat /sys/class/net/e*/address | sort | tr '\\n' ' '; echo; date +%s"
    )
    began = time.time()
    rows = [run(vm, name, script).splitlines() for name in names]
    ended = time.time()
    uuids, hosts, ids, macs, times = zip(*rows, strict=True)
    assert hosts == tuple(names)
    for column in (uuids, ids):
        assert len(set(column)) == len(names)
    private, wire = zip(*(pair.split() for pair in macs), strict=True)
    shared = {mac for mac in (*private, *wire) if (*private, *wire).count(mac) == len(names)}
    assert len(shared) == 1, "the private network keeps its address, the wire does not"
    assert len({*private, *wire}) == len(names) + 1
    for name, seen in zip(names, times, strict=True):
        assert began - 60 < int(seen) < ended + 60, name
    assert [one.identity.unchanged for one in spawned] == [()] * len(names)
    assert len({one.identity.uuid for one in spawned}) == len(names)
    ports = [one.forwards[0][1] for one in spawned] + [Vm("src", vm.context).forwards[22]]
    assert len(set(ports)) == len(ports)


def _stand_by_themselves(vm):
    """A fork that is stopped and started again is a machine like any other."""
    two = Vm("two", vm.context)
    two.stop()
    two.start()
    two.wait(timeout=1500)
    assert run(vm, "two", "sha256sum </root/blob").split()[0] == run(
        vm, "two", "yes two | head -c 3000000 | sha256sum"
    ).split()[0]  # fmt: skip
    assert run(vm, "two", "hostname").strip() == "two"


def test_a_command_and_a_connection_live_through_a_fork(source):
    """A session is open: so the process is kept, and what runs in it runs on."""
    said = []
    script = ["sh", "-c", "echo begun; until [ -e /tmp/go ]; do sleep 0.2; done; echo still here"]
    job = threading.Thread(
        target=execute, args=(source.context, "src", Order(script, stdout=said.append))
    )
    job.start()
    while not said:
        assert job.is_alive()
        time.sleep(0.05)
    result = fork(source.context, "src", ["beside"])
    try:
        assert result.method == "stream"
        assert "a command runs in it" in " ".join(result.notes) or "a fork" in result.notes[0]
        run(source, "src", "touch /tmp/go")
        job.join(300)
        assert b"".join(said) == b"begun\nstill here\n"
        seen = counter(source)
        assert seen == list(range(1, len(seen) + 1))
    finally:
        Vm("beside", source.context).remove(force=True)


POLICY = ["cut", "-d", " ", "-f", "41", "/proc/self/stat"]
UNTIL_LIKE_ALL = "until [ $(cut -d ' ' -f 41 /proc/$$/stat) = 0 ]; do sleep 0.1; done"


def test_the_command_that_a_fork_was_made_for_has_a_head_start(source):
    """By the port of the identity, and before what the new clock and name woke up."""
    frozen = freeze(source.context, "src")
    try:
        made = spawn_from(source.context, frozen.state, "quick", Wish(keep_port=True))

        def told(*argv):
            said = []
            order = Order(argv, stdout=said.append, timeout=60)
            assert execute(source.context, "quick", order, made.port) == 0
            return b"".join(said).decode().strip()

        with made.port:
            assert told(*POLICY) == "1"  # SCHED_FIFO
            assert told(*POLICY) == "0"
            assert run(source, "quick", "hostname").strip() == "quick"  # others have other ports
        Vm("quick", source.context).remove(force=True)
        made = spawn_from(source.context, frozen.state, "quick", Wish(keep_port=True))
        with made.port:
            told("sh", "-c", UNTIL_LIKE_ALL)
    finally:
        states.release(frozen.state, states.process_label())
        Vm("quick", source.context).remove(force=True)


def test_an_agent_that_nobody_talks_to_does_not_wake_up(source):
    socket = source.context.home.vm("src").socket(AGENT)
    for _ in range(2):
        with AgentClient.connect(socket, timeout=60) as agent:
            agent.ping()
    script = "grep ^voluntary /proc/$(pgrep -x qemu-ga)/status"
    deadline = time.monotonic() + 120  # what it had to do when its client left is done some time
    while run(source, "src", script) != run(source, "src", f"sleep 2; {script}"):
        assert time.monotonic() < deadline


def test_the_same_identity_is_kept_where_it_is_asked_for(source):
    script = "hostname; cat /etc/machine-id; cat /sys/class/net/e*/address"
    result = fork(source.context, "src", ["twin"], wish=Wish(same_identity=True))
    try:
        assert run(source, "twin", script) == run(source, "src", script)
        uuid = "cat /proc/sys/kernel/random/uuid"
        assert run(source, "twin", uuid) != run(source, "src", uuid)
        assert result.forks[0].identity.uuid
        assert Vm("twin", source.context).machine.uuid == source.machine.uuid
    finally:
        Vm("twin", source.context).remove(force=True)


def test_a_fork_that_was_made_paused_becomes_another_when_it_runs(source):
    result = fork(source.context, "src", ["later"], wish=Wish(paused=True))
    later = Vm("later", source.context)
    try:
        assert later.status == "paused"
        assert result.forks[0].identity.uuid == ""
        later.resume()
        assert run(source, "later", "hostname").strip() == "later"
        uuid = "cat /proc/sys/kernel/random/uuid"
        assert run(source, "later", uuid) != run(source, "src", uuid)
        assert read_record(source.context.home.vm("later").record).identity_due is None
    finally:
        later.remove(force=True)


def test_a_guest_with_the_agent_alone_is_changed_through_it(source):
    """The helper's ports are not offered to the fork: what is left is qemu-ga."""
    frozen = freeze(source.context, "src")
    manifest = frozen.state.manifest
    facts = states.GuestFacts(agent=manifest.guest.agent)
    assert facts.agent
    changed = states.State(frozen.state.paths, _with_guest(manifest, facts))
    write_file(frozen.state.paths.manifest, msgspec.json.encode(changed.manifest))
    try:
        made = spawn_from(source.context, changed, "foreign")
        assert made.identity.by == "agent"
        assert made.identity.unchanged == ()
        assert run(source, "foreign", "hostname").strip() == "foreign"
        assert re.fullmatch(r"[0-9a-f-]{36}", made.identity.uuid)
    finally:
        Vm("foreign", source.context).remove(force=True)
        states.release(frozen.state, states.process_label())


def _with_guest(manifest, facts):
    return msgspec.structs.replace(manifest, guest=facts)


def test_the_command_line_forks_and_says_what_it_cost(source):
    cli = Cli(source.context.home.root)
    done = cli("fork", "src", "--count", "2", "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    names = [made["name"] for made in told["forks"]]
    try:
        assert names == ["src-1", "src-2"]
        assert told["pause"] > 0
        for name in names:
            assert run(source, name, "hostname").strip() == name
        assert cli("check", "src", "--can", "fork,snapshot,migrate").returncode == 0
        state = read_record(source.context.home.vm("src").record).state
        assert f"state {state}" not in states.users(source.context.home, state)
    finally:
        for name in names:
            Vm(name, source.context).remove(force=True)


def test_a_disk_that_we_did_not_build_is_forked_while_it_runs(bios_disk, context):
    """By UEFI, and without an agent: ``test_foreign_forks.py``."""
    image = DiskFile(os.fspath(bios_disk), "raw", os.path.getsize(bios_disk))
    settings = {"memory": "768M", "displays": []}
    create(context, "foreign", image, Make(settings=settings))
    start(context, "foreign")
    vm = Vm("foreign", context)
    assert vm.wait(timeout=1500) == "agent"
    result = fork(context, "foreign", ["copy", "other"])
    assert [made.identity.by for made in result.forks] == ["agent", "agent"]
    assert [made.identity.unchanged for made in result.forks] == [(), ()]
    for name in ("foreign", "copy", "other"):
        run(vm, name, f"echo {name} >/root/mine; sync")
    for name in ("foreign", "copy", "other"):
        assert run(vm, name, "cat /root/mine").strip() == name
    assert run(vm, "copy", "hostname").strip() == "copy"
    assert install_helper(context, "copy") == ""
    assert Vm("copy", context).wait() == "helper"
    deep = fork(context, "copy", ["deep"])
    assert (deep.method, deep.forks[0].identity.by) == ("stream", "helper")
    assert deep.forks[0].identity.unchanged == ()
