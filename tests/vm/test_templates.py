"""The second run of an image forks what the first one booted."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from wirt.store import states
from wirt.store.machines import machine_names
from wirt.vm.create import Wish
from wirt.vm.oneshot import for_command
from wirt.vm.source import DiskFile, resolve
from wirt.vm.template import seek

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("warm")]

UUID = ["sh", "-c", "cat /proc/sys/kernel/random/uuid; hostname; cat /etc/machine-id"]


@pytest.fixture(scope="module")
def booted(guest_cli):
    """What the first run printed: it booted, and left a template."""
    done = guest_cli("run", "--timeout", "15m", "debian:12", "--", *UUID, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def listed(guest_cli):
    return json.loads(guest_cli("template", "ls", "--json").stdout)


def test_a_second_run_forks_and_is_somebody_else(booted, guest_cli, guest_context):
    [row] = listed(guest_cli)
    assert row["image"] == "debian:12"
    assert row["fits"]
    done = guest_cli("run", "debian:12", "--", *UUID)
    assert done.returncode == 0, done.stderr
    second = done.stdout.split()
    assert all(mine != others for mine, others in zip(second, booted, strict=True))
    assert listed(guest_cli)[0]["used"] >= row["used"]
    assert machine_names(guest_context.home) == []
    assert [state.id for state in states.states(guest_context.home)] == [row["state"]]


def test_several_at_once_share_the_template(booted, guest_cli):
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: guest_cli("run", "debian:12", "--", *UUID), range(3)))
    assert [done.returncode for done in runs] == [0, 0, 0], [done.stderr for done in runs]
    assert len({done.stdout for done in runs}) == 3
    assert len(listed(guest_cli)) == 1


def test_streams_and_exit_code_pass_through_a_fork(booted, guest_cli):
    command = ["sh", "-c", "cat; echo err >&2; exit 7"]
    done = guest_cli("run", "debian:12", "--", *command, stdin=b"in\n")
    assert (done.stdout, done.returncode) == (b"in\n", 7)
    assert b"err\n" in done.stderr


def test_a_template_that_lost_its_state_is_made_again(booted, guest_cli, guest_context):
    """Shown without a second boot: it is found missing, and removed from the list."""
    name = listed(guest_cli)[0]["fingerprint"]
    assert json.loads(guest_cli("template", "show", name[:6], "--json").stdout)["template"]["fits"]
    assert guest_cli("template", "rm", name).returncode == 0
    assert listed(guest_cli) == []
    assert states.states(guest_context.home) == []


def test_what_a_fingerprint_is_made_of(guest_context):
    image = resolve(guest_context, "debian:12")
    plain = seek(guest_context, image, Wish())
    assert seek(guest_context, image, Wish()) == plain
    larger = seek(guest_context, image, Wish(settings={"memory": "2G"}))
    assert larger.fingerprint != plain.fingerprint
    rebuilt = type(image)(
        record=type(image.record)(**{**_fields(image.record), "id": "0" * 64}),
        directory=image.directory,
    )
    other = seek(guest_context, rebuilt, Wish())
    assert other.kind == plain.kind
    assert other.fingerprint != plain.fingerprint


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"nics": [{"backend": {"type": "user"}}]}},
        {"settings": {"accelerator": "kvm"}},
        {"disk_size": 1 << 40},
        {"cdrom": "x.iso"},
    ],
    ids=["a card of one's own", "kvm", "a larger disk", "a CD"],
)
def test_what_cannot_be_kept_warm_boots(change, guest_context):
    from wirt.errors import MissingDependency

    image = resolve(guest_context, "debian:12")
    try:
        assert seek(guest_context, image, replace(Wish(), **change)) is None
    except MissingDependency:
        assert "kvm" in str(change)  # the host has none, and says so
    assert seek(guest_context, DiskFile("/x.qcow2", "qcow2", 1 << 30), Wish()) is None


def test_a_machine_for_one_command_has_a_screen_only_if_asked(guest_context):
    image = resolve(guest_context, "debian:12")
    screenless = {"video": {"model": "none"}, "displays": []}
    made = for_command(image, Wish(settings={"memory": "512M"}))
    assert made.settings == {"memory": "512M", "hotplug": False, **screenless}
    for asked in ({"video": {"model": "virtio"}}, {"displays": [{"type": "vnc"}]}):
        assert for_command(image, Wish(settings=asked)).settings == {"hotplug": False, **asked}
    pluggable = for_command(image, Wish(settings={"hotplug": True})).settings
    assert pluggable == {"hotplug": True, **screenless}
    theirs = DiskFile("/x.qcow2", "qcow2", 1 << 30)
    assert for_command(theirs, Wish()).settings == {}
