"""Processes: what is started, how it ends, and a name that a pid reuse cannot steal."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from wirt.errors import HostError, MissingDependency, Timeout
from wirt.host.process import detach, find_program, mortal, run, spawn, with_parent
from wirt.host.process_id import ProcessId


@pytest.fixture
def sleeper():
    """A process that does nothing until it is killed."""
    process = spawn(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_a_program_of_root_is_found_without_its_directory_in_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_program("ldconfig").endswith("sbin/ldconfig")


@pytest.mark.parametrize(
    ("program", "package"),
    [("qemu-img", "qemu-utils"), ("newuidmap", "uidmap"), ("frobnicate", "frobnicate")],
)
def test_a_missing_program_names_its_package(monkeypatch, program, package):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("wirt.host.process._MORE_PATH", ())
    with pytest.raises(MissingDependency, match=program) as caught:
        run([program])
    assert caught.value.hint == f"apt install {package}"


def test_a_path_that_is_no_program_hints_at_no_package(tmp_path):
    with pytest.raises(MissingDependency, match="is not a program") as caught:
        find_program(str(tmp_path / "qemu"))
    assert "apt" not in caught.value.hint


def test_output_and_exit_code_are_kept():
    done = run(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"err\n")


def test_much_input_and_output_at_once_do_not_block_each_other():
    data = bytes(range(256)) * 8192
    assert run(["cat"], input=data).stdout == data


def test_a_program_that_does_not_read_its_input_is_no_error():
    assert run(["true"], input=bytes(1 << 20)).returncode == 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo; echo why >&2; exit 4", "exit code 4: why"),
        ("echo on stdout; exit 1", "exit code 1: on stdout"),
        ("exit 127", "exit code 127: it said nothing"),
        ("kill -SEGV $$", "SIGSEGV"),
    ],
)
def test_a_failure_says_how_it_ended_and_its_last_words(script, words):
    with pytest.raises(HostError, match=words):
        run(["sh", "-c", script])


def test_output_without_end_is_cut_off_and_its_program_ended():
    with pytest.raises(HostError, match="said more than 65536 bytes"):
        run(["yes"], max_output=65536)


def test_a_program_beyond_its_deadline_is_killed(tmp_path, monkeypatch):
    note = tmp_path / "pid"

    class Clock:
        """Time is over when the program runs, however long that takes."""

        has_begun = False

        def monotonic(self):
            is_over, self.has_begun = self.has_begun and note.exists(), True
            return time.monotonic() + 1000 * is_over

    monkeypatch.setattr("wirt.host.process.time", Clock())
    script = f"echo $$ > {note}.new; mv {note}.new {note}; echo; exec sleep 1000"
    with pytest.raises(Timeout, match="did not end within"):
        run(["sh", "-c", script], timeout=100)
    assert ProcessId.of(int(note.read_text())) is None


def test_a_program_that_prints_beyond_its_deadline_is_killed():
    with pytest.raises(Timeout):
        run(["sh", "-c", "while :; do echo; sleep 0.01; done"], timeout=0.5)


def test_a_directory_that_is_missing_is_named():
    with pytest.raises(HostError, match="/nonexistent"):
        spawn(["true"], cwd="/nonexistent")


def test_an_argument_with_a_nul_is_refused_in_words():
    with pytest.raises(HostError, match="cannot be started"):
        spawn(["true", "a\0b"])


def test_programs_speak_english_and_get_no_sockets_meant_for_us(monkeypatch):
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LISTEN_FDS", "1")
    lines = run(["env"], env={"EXTRA": "1"}).stdout.decode().splitlines()
    assert {"LC_ALL=C.UTF-8", "EXTRA=1"} <= set(lines)
    assert not [line for line in lines if line.startswith(("LANGUAGE=", "LISTEN_"))]


def test_only_the_descriptors_named_reach_the_program():
    ours, kept = os.pipe()
    try:
        listing = ["sh", "-c", "ls /proc/self/fd"]
        with_fd = spawn(listing, stdout=subprocess.PIPE, pass_fds=[kept])
        assert str(kept) in with_fd.communicate()[0].decode().split()
        assert str(ours) not in run(listing).stdout.decode().split()
    finally:
        os.close(ours)
        os.close(kept)


def test_a_detached_child_is_reaped_when_it_ends():
    process = spawn(["sh", "-c", "exit 5"])
    detach(process)
    for thread in threading.enumerate():
        if thread.name == f"reap {process.pid}":
            thread.join(120)
    assert process.returncode == 5


def test_a_process_is_alive_until_it_ends(sleeper):
    identity = ProcessId.of(sleeper.pid)
    assert identity.alive()
    assert not identity.wait(0.05)
    assert identity.kill()
    assert identity.wait(120)  # before anyone has reaped it
    assert not identity.alive()
    assert not identity.signal(signal.SIGTERM)


def test_a_process_that_is_no_child_of_ours_can_be_waited_for():
    middle = spawn(["sh", "-c", "sleep 1000 >/dev/null & echo $!"], stdout=subprocess.PIPE)
    identity = ProcessId.of(int(middle.communicate()[0]))
    assert not identity.wait(0.05)
    assert identity.kill()
    assert identity.wait(120)


def test_another_start_time_is_another_process(sleeper):
    stranger = ProcessId(sleeper.pid, ProcessId.of(sleeper.pid).start_ticks - 1)
    assert not stranger.alive()
    assert not stranger.kill()
    assert stranger.wait(0)
    assert sleeper.poll() is None


def test_no_such_process_has_no_identity():
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        assert ProcessId.of(int(file.read())) is None


def _until_named(pid, name):
    """The kernel lets us go on a moment before it renames the process."""
    give_up = time.monotonic() + 120
    while Path(f"/proc/{pid}/comm").read_text() != f"{name}\n":
        assert time.monotonic() < give_up, f"process {pid} is not named {name}"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["a) Z 1 (b", "((((", ") )", "x y z"], ids=repr)
def test_a_hostile_process_name_does_not_confuse(tmp_path, name):
    """The name stands in /proc/PID/stat between parentheses, unescaped."""
    program = tmp_path / name
    program.symlink_to(find_program("sleep"))
    process = spawn([str(program), "1000"])
    try:
        _until_named(process.pid, name)
        assert ProcessId.of(process.pid).alive()
    finally:
        process.kill()
        process.wait()


_REUSE = """
    import os, signal, subprocess, sys, time
    from wirt.host.process_id import ProcessId

    first = subprocess.Popen(["sleep", "1000"])
    old = ProcessId.of(first.pid)
    first.kill()
    first.wait()
    time.sleep(0.05)  # start times are clock ticks
    for _ in range(100):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(old.pid - 1))
        second = subprocess.Popen(["sleep", "1000"])
        if second.pid == old.pid:
            break
        second.kill()
        second.wait()
    print(second.pid == old.pid, old.alive(), old.kill(), old.wait(0), second.poll())
    second.kill()
"""


@pytest.mark.needs_root
@pytest.mark.needs_tool("unshare")
def test_a_pid_given_to_a_stranger_is_never_signalled():
    """In a pid namespace of its own, where the next pid can be chosen."""
    script = textwrap.dedent(_REUSE)
    path = os.pathsep.join(sys.path)
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = run([*namespace, sys.executable, "-c", script], env={"PYTHONPATH": path})
    assert done.stdout.split() == [b"True", b"False", b"False", b"True", b"None"]


def test_a_mortal_program_ends_with_its_parent():
    code = (
        "import time\n"
        "from wirt.host.process import mortal, spawn\n"
        "child=spawn(mortal(['sleep','600']))\n"
        "print(child.pid,flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = ProcessId.of(int(parent.stdout.readline()))
    _until_named(child.pid, "sleep")
    assert child.alive()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert child.wait(120)


def test_a_mortal_program_of_a_parent_that_ended_first_is_not_started():
    """The kernel would tell it of the end of whoever adopted it."""
    line = mortal(["echo", "started"])
    assert run(line).stdout == b"started\n"
    stranger = subprocess.Popen(["sleep", "600"])
    with stranger:
        done = run(with_parent(line, stranger.pid), check=False)
        stranger.kill()
    assert (done.returncode, done.stdout) == (1, b"")
