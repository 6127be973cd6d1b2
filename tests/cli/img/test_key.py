"""Several passphrases for one image, set by us and tried by QEMU."""

import random
import subprocess

import pytest

from tests.cli.img.conftest import MIB
from wirt.errors import ImageAccessDenied, UnsupportedImage, UsageError

pytestmark = pytest.mark.needs_qemu_img
pytest.importorskip("cryptography")


def qemu_reads(path, name, secret):
    key = "key-secret" if name == "luks" else "encrypt.key-secret"
    done = subprocess.run(
        [
            "qemu-img", "compare", "--object", f"secret,id=s,data={secret}", "--image-opts",
            f"driver={name},{key}=s,file.filename={path}", "driver=raw,file.filename=a.raw",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or "password" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("name", ["qcow2", "luks"])
def test_passphrases_are_added_and_removed(wirt_img, tmp_path, name):
    for secret in ("first", "second", "wrong"):
        (tmp_path / secret).write_text(secret)
    (tmp_path / "a.raw").write_bytes(random.Random(1).randbytes(MIB))
    fast = "iter-time=10" if name == "luks" else "encrypt.iter-time=10"
    wirt_img("convert", "--encrypt", "--target-secret-file", "first", "-o", fast, "--to", name,
             "a.raw", "disk")  # fmt: skip
    second = ["--new-secret-file", "second"]
    wirt_img("key", "add", "--secret-file", "wrong", *second, "disk",
             code=ImageAccessDenied.exit_code)  # fmt: skip
    refused = wirt_img("key", "rm", "--secret-file", "first", "disk", code=UsageError.exit_code)
    assert "key add" in refused
    added = wirt_img("key", "add", "--secret-file", "first", *second, "disk")
    assert added == "disk: key slot 1 set\n"
    assert qemu_reads("disk", name, "first")
    assert qemu_reads("disk", name, "second")
    assert wirt_img.json("key", "rm", "--secret-file", "first", "disk")["slot"] == 0
    assert not qemu_reads("disk", name, "first")
    assert qemu_reads("disk", name, "second")
    wirt_img("compare", "--secret-file", "second", "disk", "a.raw")
    wirt_img("compare", "--secret-file", "first", "disk", "a.raw",
             code=ImageAccessDenied.exit_code)  # fmt: skip
    if name == "qcow2":
        wirt_img("check", "disk")


def test_what_is_not_encrypted_has_no_passphrases(wirt_img, tmp_path):
    (tmp_path / "key").write_text("key")
    for name in ("a.qcow2", "a.raw"):
        wirt_img("create", name, "1M")
        words = ["key", "rm", "--secret-file", "key", name]
        wirt_img(*words, code=UnsupportedImage.exit_code)
