"""What confines QEMU: the words in front of its line, uids, and reading it back."""

import os
import subprocess

import pytest

from wirt.errors import HostError
from wirt.host import confine
from wirt.host.confine import UID_BASE, UID_COUNT, confinement, read_confinement, vm_uid
from wirt.host.process import spawn

WHOLE = [range((1 << 32) - 1)]


def test_uids_come_from_the_range_where_it_exists():
    assert confine._choose(0, WHOLE) == UID_BASE
    assert confine._choose(UID_COUNT - 1, WHOLE) == UID_BASE + UID_COUNT - 1
    assert confine._choose(UID_COUNT, WHOLE) == UID_BASE


@pytest.mark.parametrize(
    "blocks",
    [
        [range(65536)],
        [range(1), range(1, 65537)],
        [range(4096)],
        [range(1000), range(100000, 165536)],
        [range(UID_BASE + UID_COUNT - 1)],
    ],
    ids=["container", "rootless", "small", "two blocks", "one short"],
)
def test_elsewhere_they_are_mapped_and_nobodys(blocks):
    """Never uid 0, an ordinary system's ids, nobody, or the 16-bit -1."""
    chosen = {confine._choose(index, blocks) for index in range(UID_COUNT)}
    assert all(any(uid in block for block in blocks) for uid in chosen)
    assert not chosen & {65534, 65535}
    assert min(chosen) >= 1000
    assert len(chosen) >= 1000


@pytest.mark.parametrize("blocks", [[], [range(1)], [range(1000)]])
def test_too_few_uids_are_an_error_with_a_hint(blocks):
    with pytest.raises(HostError, match="too few uids") as caught:
        confine._choose(0, blocks)
    assert caught.value.hint


def test_a_number_must_be_a_uid_and_a_gid():
    assert confine._common([range(10), range(50, 99)], [range(5, 60)]) == [
        range(5, 10),
        range(50, 60),
    ]


def test_this_host_has_a_uid_for_a_machine():
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert vm_uid(7) != 0


def confined(*, uid, kvm=False):
    """Return what the kernel says of a process behind the words."""
    process = spawn([*confinement(uid, kvm=kvm), "cat"], stdin=-1, stdout=subprocess.PIPE)
    try:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read1() == b"x"  # it is cat now, not setpriv
        return read_confinement(process.pid)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.needs_root
@pytest.mark.needs_tool("setpriv")
def test_root_gives_everything_up():
    uid = vm_uid(1234)
    found = confined(uid=uid)
    assert (found.uid, found.gid, found.groups) == (uid, uid, ())
    assert found.no_new_privileges
    assert int(found.capabilities, 16) == 0


@pytest.mark.needs_tool("setpriv")
def test_no_privileges_can_be_gained_in_any_case():
    found = confined(uid=0)
    assert found.no_new_privileges
    assert found.uid == os.geteuid()


@pytest.mark.needs_root
@pytest.mark.needs_tool("setpriv")
def test_the_group_of_a_device_stays(tmp_path, monkeypatch):
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, 54321)
    device.chmod(0o660)
    real = confine.device_group
    monkeypatch.setattr(confine, "device_group", lambda _: real(str(device)))
    assert confined(uid=vm_uid(1), kvm=True).groups == ("54321",)


@pytest.mark.needs_root
def test_a_device_that_its_group_may_not_open_gives_no_group(tmp_path):
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, 54321)
    device.chmod(0o600)
    assert confine.device_group(str(device)) == 0
    assert confine.device_group(str(tmp_path / "absent")) == 0


def test_a_process_that_is_gone_is_an_error():
    process = spawn(["true"])
    process.wait()
    with pytest.raises(HostError, match="is gone"):
        read_confinement(process.pid)


@pytest.mark.parametrize(("mode", "word"), [("0", "none"), ("1", "strict"), ("2", "filter")])
def test_seccomp_is_read_as_a_word(mode, word):
    text = f"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nSeccomp:\t{mode}\nCapEff:\t00ff\n"
    found = confine.parse_status(text)
    assert (found.uid, found.gid, found.seccomp, found.capabilities) == (2, 6, word, "00ff")
    assert not found.no_new_privileges
