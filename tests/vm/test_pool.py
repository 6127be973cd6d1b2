"""Pools: machines that wait are taken by runs, and made again."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.test_templates import UUID
from wirt.store.machines import machine_names
from wirt.store.pools import changing, pool_names
from wirt.store.record import read_record
from wirt.vm.remove import remove

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("warm")]

SECONDS = 600.0


def pool(guest_cli, *words):
    done = guest_cli("pool", *words, "--json", timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def filled(guest_cli):
    """Return the one pool when it is full again."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        [row] = pool(guest_cli)
        if row["ready"] == row["size"]:
            return row
        time.sleep(0.2)
    raise AssertionError(row)


def settled(fingerprint):
    """Return when nobody is about to fill the pool up."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if not any({b"--refill", fingerprint.encode()} <= line for line in command_lines()):
            return
        time.sleep(0.1)
    raise AssertionError("the pool is being filled for ever")


def command_lines():
    """Yield the words of every process; one may end at any moment."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield set(path.read_bytes().split(b"\0"))


def test_a_run_takes_a_machine_that_waits_and_the_pool_is_filled_up(guest_cli, guest_context):
    home = guest_context.home
    row = pool(guest_cli, "debian:12", "--size", "2", "--timeout", "15m")
    try:
        assert (row["image"], row["size"], row["ready"]) == ("debian:12", 2, 2)
        assert row["ram"] > 0
        fingerprint = row["fingerprint"]
        waiting = set(machine_names(home))
        assert len(waiting) == 2
        done = guest_cli("run", "debian:12", "--", *UUID)
        assert done.returncode == 0, done.stderr
        first = done.stdout.decode().split()
        assert first[1] in waiting  # its host name is the name of one that waited
        filled(guest_cli)
        assert first[1] not in machine_names(home)

        with changing(home, fingerprint):  # nobody fills it up now
            with ThreadPoolExecutor(3) as threads:
                runs = list(
                    threads.map(lambda _: guest_cli("run", "debian:12", "--", *UUID), range(3))
                )
            assert [done.returncode for done in runs] == [0, 0, 0], [one.stderr for one in runs]
            said = [first, *(done.stdout.decode().split() for done in runs)]
            for column in range(3):  # random numbers, host names, machine-ids
                assert len({one[column] for one in said}) == 4
            assert machine_names(home) == []
            settled(fingerprint)
        assert pool(guest_cli)[0]["ready"] == 0
        assert guest_cli("run", "debian:12", "--", "true").returncode == 0
        filled(guest_cli)
        settled(fingerprint)

        lost = machine_names(home)[0]
        remove(guest_context, lost, force=True)
        assert pool(guest_cli)[0]["ready"] == 1
        assert pool(guest_cli, "debian:12", "--size", "3")["ready"] == 3
        assert pool(guest_cli, "debian:12", "--size", "1")["ready"] == 1
        [name] = machine_names(home)
        assert read_record(home.vm(name).record).pool == fingerprint
        assert guest_cli("resume", name).returncode == 0  # the user's own from now on
        assert pool(guest_cli)[0]["ready"] == 0
        assert guest_cli("exec", name, "--", "hostname").stdout.decode().strip() == name
    finally:
        row = pool(guest_cli, "debian:12", "--size", "0")
        for name in machine_names(home):
            remove(guest_context, name, force=True)
    assert (row["size"], row["ready"]) == (0, 0)
    assert pool_names(home) == []
    assert pool(guest_cli) == []


def test_what_a_killed_run_had_taken_is_removed_by_the_next(guest_cli, guest_context):
    home = guest_context.home
    row = pool(guest_cli, "debian:12", "--size", "1", "--timeout", "15m")
    [taken] = machine_names(home)
    try:
        guest_cli.env["WIRT_FAILPOINT"] = "claimed"
        assert guest_cli("run", "debian:12", "--", "true").returncode == -9
        del guest_cli.env["WIRT_FAILPOINT"]
        record = read_record(home.vm(taken).record)
        assert (record.pool, record.temporary) == ("", True)
        done = guest_cli("run", "debian:12", "--", *UUID)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().split()[1] != taken
        assert filled(guest_cli)["fingerprint"] == row["fingerprint"]
        assert taken not in machine_names(home)
    finally:
        guest_cli.env.pop("WIRT_FAILPOINT", None)
        pool(guest_cli, "debian:12", "--size", "0")
    assert machine_names(home) == []
