"""What must not happen: strangers' images, images in use, passphrases, Ctrl-C."""

import io
import json
import os
import pty
import random
import signal
import struct
import subprocess
import time

import pytest

from tests.cli.img.conftest import MIB, qemu_img
from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageInUse,
    OutOfBounds,
    UsageError,
)

pytestmark = pytest.mark.needs_qemu_img


def overlay_of(name, path, backing_format="raw"):
    qemu_img("create", "-u", "-f", "qcow2", "-F", backing_format, "-b", name, path, "1M")


@pytest.fixture
def place(wirt_img, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "base.raw").write_bytes(b"base" * (MIB // 4))
    (tmp_path / "secret.raw").write_bytes(b"secret!!" * (MIB // 8))
    return tmp_path


@pytest.mark.parametrize("verb", [["compare"], ["convert"], ["map"], ["flatten"], ["commit"]])
def test_a_strangers_image_opens_nothing_of_ours(wirt_img, place, verb):
    before = (place / "secret.raw").read_bytes()
    for number, name in enumerate(["../secret.raw", str(place / "secret.raw"), "/etc/shadow"]):
        overlay_of(name, place / "images" / "evil.qcow2")
        words = [*verb, "images/evil.qcow2"]
        words += ["images/base.raw"] if verb == ["compare"] else []
        words += [f"out{number}.raw"] if verb == ["convert"] else []
        refused = wirt_img(*words, code=ImageAccessDenied.exit_code)
        assert "--allow" in refused
    assert not (place / "out0.raw").exists()
    assert (place / "secret.raw").read_bytes() == before


def test_symbolic_links_hidden_files_and_devices_are_no_neighbours(wirt_img, place):
    images = place / "images"
    (images / "link.raw").symlink_to(place / "secret.raw")
    (images / ".ssh").mkdir()
    (images / ".ssh" / "id").write_bytes(b"k" * 512)
    os.mkfifo(images / "pipe")
    for name in ("link.raw", ".ssh/id", "pipe", "nbd:localhost:10809", 'json:{"driver":"file"}'):
        overlay_of(name, images / "evil.qcow2")
        wirt_img("map", "images/evil.qcow2", code=ImageAccessDenied.exit_code)


def test_in_a_directory_for_everybody_only_files_of_one_owner_are_neighbours(wirt_img, place):
    if os.geteuid() != 0:
        pytest.skip("needs root, to make files of two owners")
    images = place / "images"
    overlay_of("base.raw", images / "evil.qcow2")
    wirt_img("map", "images/evil.qcow2")
    images.chmod(0o1777)
    wirt_img("map", "images/evil.qcow2")
    os.chown(images / "evil.qcow2", 65534, 65534)
    wirt_img("map", "images/evil.qcow2", code=ImageAccessDenied.exit_code)
    images.chmod(0o755)
    wirt_img("map", "images/evil.qcow2")


def test_ones_own_overlays_need_no_consent_beside_their_base_and_little_elsewhere(
    wirt_img, place, monkeypatch
):
    wirt_img("create", "-b", "base.raw", "images/top.qcow2")
    wirt_img("map", "images/top.qcow2")
    (place / "vms").mkdir()
    wirt_img("create", "-b", "../images/base.raw", "vms/top.qcow2")
    refused = wirt_img("convert", "vms/top.qcow2", "x.raw", code=ImageAccessDenied.exit_code)
    assert "--allow vms/../images/base.raw" in refused
    wirt_img("convert", "--allow", "images", "vms/top.qcow2", "x.raw")
    wirt_img("convert", "--allow", "images/base.raw", "vms/top.qcow2", "y.raw")
    wirt_img("convert", "--allow-any", "vms/top.qcow2", "z.raw")
    monkeypatch.setenv("WIRT_ALLOW", f"/nowhere:{place / 'images'}")
    wirt_img("map", "vms/top.qcow2")
    wirt_img("map", "--allow-none", "images/top.qcow2", code=ImageAccessDenied.exit_code)
    [about] = wirt_img.json("info", "--allow-none", "images/top.qcow2")
    assert about["chain"] == []
    assert "not opened unasked" in about["chain_problem"]


def test_disks_of_machines_may_name_the_images_that_wirt_keeps(wirt_img, place):
    home = place / "home"
    for name in ("images/debian", "machines/web/disks"):
        (home / name).mkdir(parents=True)
    (home / "images/debian/disk.raw").write_bytes(bytes(MIB))
    overlay_of(str(home / "images/debian/disk.raw"), home / "machines/web/disks/root.qcow2")
    wirt_img("map", home / "machines/web/disks/root.qcow2")
    overlay_of(str(place / "secret.raw"), home / "machines/web/disks/root.qcow2")
    wirt_img("map", home / "machines/web/disks/root.qcow2", code=ImageAccessDenied.exit_code)


def test_a_chain_that_comes_back_is_refused(wirt_img, place):
    overlay_of("b.qcow2", place / "a.qcow2", "qcow2")
    overlay_of("a.qcow2", place / "b.qcow2", "qcow2")
    os.link(place / "a.qcow2", place / "c.qcow2")  # another name of the same file
    for name in ("a.qcow2", "c.qcow2"):
        refused = wirt_img("map", name, code=CorruptImage.exit_code)
        assert "comes back" in refused


def test_a_small_image_that_declares_terabytes_is_refused_by_every_verb(wirt_img, tmp_path):
    """12 MiB of L2 tables, all of whose entries are one compressed cluster: 2 TiB."""
    cluster, tables = 2 << 20, 4
    wirt_img("create", "-o", "cluster_size=2M", "bomb.qcow2", str(tables << 39))
    packed = 8 * cluster
    entry = struct.pack(">Q", 1 << 62 | packed)
    with (tmp_path / "bomb.qcow2").open("r+b") as file:
        file.seek(40)
        l1 = struct.unpack(">Q", file.read(8))[0]
        file.seek(l1)
        file.write(b"".join(struct.pack(">Q", (4 + n) * cluster | 1 << 63) for n in range(tables)))
        for number in range(tables):
            file.seek((4 + number) * cluster)
            file.write(entry * (cluster // 8))
        file.truncate(packed + 4096)
    before = (tmp_path / "bomb.qcow2").stat().st_size
    assert before < 17 << 20
    words = {
        "convert": ["bomb.qcow2", "out.raw"],
        "compare": ["bomb.qcow2", "bomb.qcow2"],
        "dd": ["bomb.qcow2", "out.raw"],
    }
    for verb, arguments in words.items():
        refused = wirt_img(verb, *arguments, code=OutOfBounds.exit_code)
        assert "--no-limits" in refused
        assert not list(tmp_path.glob("out*"))
    assert "declares more than" in wirt_img(
        "convert", "--to", "raw", "bomb.qcow2", "-", code=OutOfBounds.exit_code
    )


@pytest.mark.needs_tool("qemu-io")
def test_an_image_that_a_machine_has_is_looked_at_but_not_written(wirt_img, tmp_path):
    wirt_img("create", "disk.qcow2", "8M")
    user = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", "disk.qcow2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        [about] = wirt_img.json("info", "disk.qcow2")
        assert about["in_use"]
        refused = wirt_img("map", "disk.qcow2", code=ImageInUse.exit_code)
        assert "--force-share" in refused
        wirt_img("map", "--force-share", "disk.qcow2")
        for words in (["resize", "disk.qcow2", "9M"], ["snapshot", "create", "disk.qcow2", "x"]):
            wirt_img(*words, code=ImageInUse.exit_code)
        wirt_img("snapshot", "create", "-U", "disk.qcow2", "x", code=ImageInUse.exit_code)
        wirt_img("create", "--force", "disk.qcow2", "1M", code=ImageInUse.exit_code)
    finally:
        user.stdin.close()
        user.wait(timeout=300)
        user.stdout.close()
    assert not wirt_img.json("info", "disk.qcow2")[0]["in_use"]


def test_passphrases_come_from_files_or_the_terminal(wirt_img, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    (tmp_path / "key").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery staple\n")
    (tmp_path / "a.raw").write_bytes(random.Random(1).randbytes(MIB))
    fast = ["-o", "encrypt.iter-time=10"]
    wirt_img("convert", "--encrypt", "--target-secret-file", "key", *fast, "a.raw", "b.qcow2")
    assert "encrypted: yes" in wirt_img("info", "b.qcow2")
    wirt_img("compare", "--secret-file", "key", "b.qcow2", "a.raw")
    wirt_img("map", "b.qcow2")
    wirt_img(
        "compare", "--secret-file", "wrong", "b.qcow2", "a.raw", code=ImageAccessDenied.exit_code
    )
    monkeypatch.setattr("sys.stdin", io.StringIO())
    refused = wirt_img("compare", "b.qcow2", "a.raw", code=UsageError.exit_code)
    assert "--secret-file" in refused
    secret = "secret,id=s,data=correct horse"
    described = "driver=qcow2,encrypt.key-secret=s,file.filename=b.qcow2"
    qemu_img(
        "compare", "--object", secret, "--image-opts", described, "driver=raw,file.filename=a.raw"
    )
    wirt_img("create", "--encrypt", "--secret-file", "key", *fast, "new.qcow2", "8M")
    wirt_img("resize", "--secret-file", "key", "new.qcow2", "16M")


def test_a_terminal_asks_for_the_passphrase_and_shows_progress(wirt_img, spawn, tmp_path):
    pytest.importorskip("cryptography")
    (tmp_path / "key").write_text("correct horse")
    wirt_img(
        "create",
        "--encrypt",
        "--secret-file",
        "key",
        "-o",
        "encrypt.iter-time=10",
        "a.qcow2",
        "64M",
    )
    ours, theirs = pty.openpty()
    process = spawn(
        "convert", "--sparse", "0", "a.qcow2", "b.raw", stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, True)
    seen = _until(ours, b"passphrase of a.qcow2: ")
    os.write(ours, b"correct horse\n")
    seen += _until(ours, b"b.raw: raw")
    assert process.wait(timeout=300) == 0
    assert b"correct horse" not in seen
    assert "· converting: ".encode() in seen
    os.close(ours)


def _until(fd, text):
    seen = b""
    while text not in seen:
        piece = os.read(fd, 4096)
        assert piece, seen
        seen += piece
    return seen


def test_progress_and_notes_stay_off_pipes(spawn, tmp_path):
    (tmp_path / "a.raw").write_bytes(b"x" * MIB)
    process = spawn("convert", "--json", "a.raw", "b.qcow2", stdout=-1, stderr=-1)
    out, err = process.communicate(timeout=300)
    assert json.loads(out)["format"] == "qcow2"
    assert err == b""


@pytest.mark.parametrize("resume", [False, True])
def test_interrupted_it_leaves_nothing_or_what_it_goes_on_with(spawn, wirt_img, resume, tmp_path):
    data = random.Random(1).randbytes(8 * MIB)
    (tmp_path / "a.raw").write_bytes(data)
    words = ["--resume"] if resume else []
    process = spawn("convert", *words, "--rate-limit", "512K", "a.raw", "b.qcow2", stderr=-1)
    partial = tmp_path / "b.qcow2.partial"
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.stat().st_size > MIB):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"interrupted" in err
    assert not (tmp_path / "b.qcow2").exists()
    assert partial.exists() is resume
    assert (b"the same command goes on" in err) is resume
    wirt_img("convert", *words, "a.raw", "b.qcow2")
    wirt_img("compare", "a.raw", "b.qcow2")
    qemu_img("check", "b.qcow2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw", "b.qcow2"]


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_standard_output_takes_images_also_into_files(spawn, tmp_path, name):
    data = random.Random(1).randbytes(MIB) + bytes(MIB)
    (tmp_path / "a.raw").write_bytes(data)
    with (tmp_path / "out").open("wb") as out:
        assert spawn("convert", "--to", name, "a.raw", "-", stdout=out).wait(timeout=300) == 0
    qemu_img("compare", "-f", "raw", "-F", name, tmp_path / "a.raw", tmp_path / "out")
    piped = spawn("convert", "--to", name, "a.raw", "-", stdout=subprocess.PIPE)
    assert piped.communicate(timeout=300)[0] == (tmp_path / "out").read_bytes()


def test_a_device_is_not_overwritten_without_consent(wirt_img, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, for a loop device")
    (tmp_path / "a.raw").write_bytes(random.Random(1).randbytes(MIB))
    (tmp_path / "store").write_bytes(b"y" * 2 * MIB)
    made = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "store"], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no loop devices here")
    device = made.stdout.decode().strip()
    try:
        refused = wirt_img("convert", "--to", "raw", "a.raw", device, code=UsageError.exit_code)
        assert "--force" in refused
        wirt_img("convert", "--to", "raw", "--force", "a.raw", device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    written = (tmp_path / "store").read_bytes()
    assert written[:MIB] == (tmp_path / "a.raw").read_bytes()
