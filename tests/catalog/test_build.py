from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.child import run
from wirt.catalog.hostkeys import make_host_keys
from wirt.catalog.recipe import Recipe
from wirt.errors import HostError, MissingDependency, NoSpace, UsageError

BUILD = """
import sys
from pathlib import Path
from wirt.catalog.build import build_image
from wirt.catalog.catalog import Catalog
from wirt.catalog.recipe import Recipe
build_image(Catalog(Path(sys.argv[1])), Recipe(), step=lambda text: print(text, flush=True))
"""


@pytest.mark.needs_tool("mmdebstrap")
def test_an_archive_that_does_not_answer_is_named_and_nothing_is_left(catalog):
    recipe = Recipe(mirror="http://127.0.0.1:1/debian")
    with pytest.raises(HostError, match=r"http://127\.0\.0\.1:1/debian cannot be reached") as error:
        build_image(catalog, recipe)
    assert "--mirror" in error.value.hint
    assert list(catalog.root.iterdir()) == []


def test_a_bad_recipe_is_refused_before_anything_is_made(catalog):
    with pytest.raises(UsageError):
        build_image(catalog, Recipe(hostname="a b"))
    assert not catalog.root.exists()


def test_missing_programs_are_named_with_their_package(catalog, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency) as error:
        build_image(catalog, Recipe())
    assert error.value.hint.startswith("apt install")
    assert list(catalog.root.iterdir()) == []


@pytest.mark.needs_root
def test_too_little_space_is_said_before_the_work(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", tmp_path], check=True)
    try:
        with pytest.raises(NoSpace, match=r"building needs 2\.5G .* 64M are free"):
            build_image(Catalog(tmp_path), Recipe())
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def _left_behind(root):
    """Processes and mounts that name ``root``, other than this test's."""
    named = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(root) in command and int(entry.parent.name) != os.getpid():
            named.append(command)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return named + [line for line in mounts if str(root) in line]


def _until_nothing_is_left(root):
    """Who was killed takes a moment to end."""
    deadline = time.monotonic() + 120
    while left := _left_behind(root):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.needs_tool("mmdebstrap")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_an_interrupted_build_leaves_no_process_and_no_mount(catalog, number):
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(catalog.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with builder:
        for line in builder.stdout:
            if line.startswith("unpacking"):
                break
        builder.send_signal(number)
        builder.wait(timeout=300)
        assert builder.returncode != 0
    _until_nothing_is_left(catalog.root)
    assert len(catalog.sweep()) == (2 if number == signal.SIGKILL else 0)
    assert list(catalog.root.iterdir()) == []


def test_host_keys_come_with_their_public_halves_and_differ_each_time():
    first, second = make_host_keys(comment="x"), make_host_keys(comment="x")
    assert set(first) == set(second)
    assert "/etc/ssh/ssh_host_ed25519_key.pub" in first
    assert all(first[path] != second[path] for path in first)
    assert first["/etc/ssh/ssh_host_ed25519_key"].startswith(b"-----BEGIN OPENSSH PRIVATE KEY")


def test_a_failing_program_is_told_by_its_last_lines():
    with pytest.raises(HostError, match=r"the test failed \(exit status 3\)\n(.*\n)*  line 29$"):
        run(["sh", "-c", "for i in $(seq 0 29); do echo line $i; done; exit 3"], what="the test")


def test_a_program_that_fills_the_disk_is_no_space():
    with pytest.raises(NoSpace):
        run(["sh", "-c", "echo x: No space left on device; exit 1"], what="the test")


def test_a_callback_that_raises_ends_the_programs_children(tmp_path):
    def stop(_line):
        raise KeyboardInterrupt

    script = f"(sleep 600; touch {tmp_path}/survived) & echo started; wait"
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", script], what="the test", line=stop)
    _until_nothing_is_left(tmp_path)


@pytest.mark.needs_guest
@pytest.mark.needs_tool("mmdebstrap")
def test_a_second_build_of_the_recipe_is_the_same_image(guest_image):
    catalog = Catalog(guest_image.directory.parent)
    assert build_image(catalog, Recipe(distribution="debian:bookworm"), name="debian:12") == (
        catalog.find("debian:12")
    )
