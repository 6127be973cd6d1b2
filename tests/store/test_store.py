"""Locks, records and directories of machines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from wirt.errors import AlreadyExists, Busy, HostError, NoSpace, NotFound, UsageError
from wirt.store import layout
from wirt.store.atomic import copy_file, write_file
from wirt.store.layout import default_home, home_at, private_directory
from wirt.store.locks import command_lock, run_lock_is_held, take_run_lock, try_lock
from wirt.store.machines import (
    find,
    locked,
    machine_names,
    new_machine,
    remove_machine,
    rename_machine,
    sweep,
)
from wirt.store.record import Record, read_record, write_record


@pytest.fixture
def home(tmp_path):
    return layout.Home(str(tmp_path / "home"), str(tmp_path / "run"))


def make(home, name):
    with new_machine(home, name) as paths:
        write_file(paths.spec, b"")
    return home.vm(name)


def test_the_run_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path):
    path = str(tmp_path / "run.lock")
    assert not run_lock_is_held(path)
    fd = take_run_lock(path)
    heir = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
    os.close(fd)
    assert run_lock_is_held(path)
    with pytest.raises(Busy):
        take_run_lock(path)
    heir.kill()
    heir.wait()
    assert not run_lock_is_held(path)


def test_asking_for_the_run_lock_takes_nothing(tmp_path):
    path = str(tmp_path / "run.lock")
    os.close(take_run_lock(path))
    wrong = []

    def ask():
        for _ in range(300):
            wrong.extend([1] if run_lock_is_held(path) else [])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_copy_of_the_lock_file_is_free(tmp_path):
    fd = take_run_lock(str(tmp_path / "run.lock"))
    (tmp_path / "copy").write_bytes((tmp_path / "run.lock").read_bytes())
    assert not run_lock_is_held(str(tmp_path / "copy"))
    os.close(fd)


def test_a_second_command_waits_and_says_so(home):
    make(home, "one")
    told = []
    with (
        locked(home, "one"),
        pytest.raises(Busy, match="one"),
        locked(home, "one", timeout=0.1, waiting=told.append),
    ):
        pass
    assert len(told) == 1


def test_a_lock_dies_with_its_holder(home):
    paths = make(home, "one")
    code = (
        "import fcntl,os,sys,time\n"
        "fd=os.open(sys.argv[1],os.O_RDWR)\n"
        "fcntl.flock(fd,fcntl.LOCK_EX)\n"
        "print('held',flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, paths.lock], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert try_lock(paths.lock) is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(home, "one", timeout=5):
        pass


def test_who_waits_for_a_machine_that_is_removed_is_told_that_it_is_gone(home):
    paths = make(home, "one")
    outcome = []

    def wait():
        try:
            with command_lock(paths.lock, timeout=30):
                outcome.append("locked")
        except NotFound:
            outcome.append("gone")

    with locked(home, "one"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        remove_machine(home, paths)
    waiter.join(30)
    assert outcome == ["gone"]


def _fail_while_making(home):
    with new_machine(home, "one"):
        assert machine_names(home) == []
        raise RuntimeError


def test_a_machine_appears_whole_or_not_at_all(home):
    with pytest.raises(RuntimeError):
        _fail_while_making(home)
    assert os.listdir(home.vms) == []


def test_of_two_that_make_one_name_one_wins(home):
    with pytest.raises(AlreadyExists), new_machine(home, "one"):
        make(home, "one")
    assert machine_names(home) == ["one"]


def test_sweeping_spares_what_somebody_works_on(home):
    with new_machine(home, "one") as paths:
        os.utime(paths.root, (0, 0))
        sweep(home)
        assert os.path.isdir(paths.root)


def test_sweeping_takes_what_killed_commands_left(home):
    make(home, "one")
    left = os.path.join(home.vms, ".new-0123")
    os.mkdir(left)
    sweep(home)
    assert os.path.isdir(left)  # perhaps it is just being made
    os.close(try_lock(os.path.join(left, "lock")))
    sweep(home)
    assert machine_names(home) == ["one"]
    assert not os.path.exists(left)


def test_a_renamed_machine_keeps_its_sockets_and_a_copy_gets_others(home):
    paths = make(home, "one")
    before = paths.runtime
    renamed = rename_machine(home, paths, "two")
    assert renamed.runtime == before
    subprocess.run(["cp", "-a", renamed.root, home.vm("copy").root], check=True)
    assert home.vm("copy").runtime != before


def test_socket_paths_are_short_enough_for_the_kernel(home):
    paths = layout.VmPaths(make(home, "x" * 63).root, "/run/user/4294967295/wirt")
    assert len(paths.socket("org.qemu.guest_agent.0")) <= layout.SOCKET_PATH_MAX


def test_a_hostile_name_never_becomes_a_path(home):
    for name in ("..", "../x", "a/b", "", "\n"):
        with pytest.raises(UsageError):
            find(home, name)


@pytest.mark.needs_root
def test_a_file_is_replaced_or_stays_when_the_disk_is_full(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(tmp_path)], check=True)
    try:
        path = tmp_path / "f"
        write_file(str(path), b"old")
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(NoSpace):
            write_file(str(path), b"y" * 4096)
        assert path.read_bytes() == b"old"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f", "filler"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_record_of_a_newer_wirt_is_not_touched(tmp_path):
    path = str(tmp_path / "state.json")
    write_record(path, Record(version=99))
    with pytest.raises(HostError, match="newer"):
        read_record(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"run": 3}', b"\xff" * 100])
def test_a_damaged_record_is_an_error_in_words(tmp_path, data):
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(HostError, match="damaged"):
        read_record(str(path))


def test_a_directory_of_another_user_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/tmp")
    with pytest.raises(HostError):
        private_directory(str(tmp_path / "link"))


def test_the_home_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WIRT_HOME", str(tmp_path))
    assert default_home().root == str(tmp_path)
    assert home_at(str(tmp_path)) == default_home()
    monkeypatch.setenv("WIRT_HOME", "relative")
    with pytest.raises(UsageError, match="absolute"):
        default_home()


def test_a_file_of_a_guest_is_copied_and_no_link_pipe_or_flood_is(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"variables")
    copy_file(str(source), str(target), limit=9)
    assert target.read_bytes() == b"variables"
    with pytest.raises(HostError):
        copy_file(str(source), str(target), limit=8)
    (tmp_path / "link").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    for hostile in ("link", "pipe", "absent"):
        with pytest.raises(HostError):
            copy_file(str(tmp_path / hostile), str(tmp_path / "copy"), limit=99)
    assert not (tmp_path / "copy").exists()
