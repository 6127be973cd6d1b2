"""What the documented table says of qemu-img 7.2 is what the installed one does."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.image.qemu_keys import run_qemu_img

TABLE = tomllib.loads(
    (Path(__file__).parents[3] / "tools" / "format_peers.toml").read_text(encoding="utf-8")
)["qemu-img"]
SECRET = ("--object", "secret,id=s,data=geheim")


def run(*words):
    return subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True, timeout=600
    )


def qemu_img(*words):
    return run_qemu_img(list(words))


@pytest.fixture(scope="module")
def formats():
    version = run("qemu-img", "--version").stdout
    if "version 7.2." not in version:
        pytest.skip(f"the table is about qemu-img 7.2, not {version.splitlines()[0]}")
    text = run("qemu-img", "--help").stdout
    return re.search(r"Supported formats: (.*)", text)[1].split()


def tried(name, directory, formats):
    """Return what qemu-img does with a format, by trying; not what only a sample can show."""
    able = {"read"} if name in formats else set()
    path = directory / f"d.{name}"
    options = ["-o", "key-secret=s"] if name == "luks" else []
    secret = SECRET if name == "luks" else ()
    made = qemu_img("create", *secret, "-q", "-f", name, *options, path, "4M")
    if made.returncode:
        return able
    able.add("create")
    target = f"driver={name},file.filename={path}"
    target += ",key-secret=s" if name == "luks" else ""
    written = run("qemu-io", *secret, "-c", "write 0 512", "--image-opts", target)
    able |= {"write"} if "wrote 512" in written.stdout else set()
    checked = qemu_img("check", *secret, "--image-opts", target)
    able |= {"check"} if checked.returncode == 0 else set()
    grown = qemu_img("resize", *secret, "--image-opts", target, "8M")
    able |= {"resize"} if grown.returncode == 0 else set()
    kept = qemu_img("snapshot", "-c", "s", path)
    able |= {"snapshot"} if kept.returncode == 0 and name not in {"luks", "raw"} else set()
    child = qemu_img("create", "-q", "-f", name, "-b", path, "-F", name, directory / "child")
    able |= {"backing"} if child.returncode == 0 and name != "luks" else set()
    return able


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_what_qemu_img_does(name, formats, tmp_path):
    if name == "vvfat":
        assert "vvfat" in formats
        return
    if name.startswith("host_"):  # writes to devices only, which this test does not have
        assert name in formats
        return
    # A compressed disk needs a sample: those are read in the tests of each format.
    assert tried(name, tmp_path, formats) == set(TABLE[name]) - {"compressed"}
