"""LUKS and legacy AES inside qcow2, in both directions with QEMU."""

import random

import pytest

from tests.image.qcow2.support import Memory, create, open_image, qemu_img
from tests.image.qemu_keys import run_qemu_img
from wirt.errors import ImageAccessDenied, UnsupportedImage, UsageError
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT

pytestmark = pytest.mark.needs_qemu_img
MIB = 1 << 20
SECRET = ("--object", "secret,id=s,data=geheim")
FAST = {"encrypt.format": "luks", "encrypt.secret": "geheim", "encrypt.iter-time": "10"}


def qemu_read(path, tmp_path):
    """Return the disk as QEMU deciphers it."""
    raw = tmp_path / "plain.raw"
    options = f"driver=qcow2,file.filename={path},encrypt.key-secret=s"
    qemu_img("convert", *SECRET, "--image-opts", options, "-O", "raw", raw)
    return raw.read_bytes()


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"encrypt.cipher-alg": "aes-128", "encrypt.cipher-mode": "cbc"},
        {"encrypt.cipher-mode": "cbc", "encrypt.ivgen-alg": "essiv"},
        {"cluster_size": "512", "encrypt.hash-alg": "sha1"},
        {"extended_l2": "on"},
        {"preallocation": "full"},
    ],
    ids=["xts", "cbc", "essiv", "512", "extended", "preallocated"],
)
def test_what_we_encipher_qemu_deciphers(tmp_path, extra):
    path, rng = create(tmp_path / "a.qcow2", MIB, **FAST, **extra), random.Random(str(extra))
    model = bytearray(MIB)
    with open_image(path, writable=True, secret=b"geheim") as image:
        for _ in range(25):
            offset = rng.randrange(MIB - 50_000)
            data = rng.randbytes(rng.randrange(1, 50_000))
            if rng.random() < 0.25:
                image.write_zeroes(offset, len(data))
                data = bytes(len(data))
            else:
                image.pwrite(offset, data)
            model[offset : offset + len(data)] = data
        assert image.pread(0, MIB) == model
        assert image.info().encrypted
    with open_image(path, secret=b"geheim") as image:
        assert image.pread(0, MIB) == model
        result = image.check()
        assert (result.leaks, result.corruptions) == (0, 0)
    assert qemu_read(path, tmp_path) == model
    qemu_img(
        "check", *SECRET, "--image-opts", f"driver=qcow2,file.filename={path},encrypt.key-secret=s"
    )


@pytest.mark.parametrize("mode", ["luks", "aes"])
def test_what_qemu_enciphers_we_decipher(tmp_path, mode):
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    model = random.Random(mode).randbytes(MIB)
    raw.write_bytes(model)
    options = f"encrypt.format={mode},encrypt.key-secret=s"
    if mode == "luks":
        options += ",encrypt.iter-time=10"
    done = run_qemu_img(["convert", *SECRET, "-O", "qcow2", "-o", options, raw, path])
    if done.returncode and mode == "aes":
        pytest.skip("this qemu-img no longer makes legacy AES images")
    assert done.returncode == 0, done.stderr
    with open_image(path, secret=b"geheim") as image:
        assert image.pread(0, MIB) == model
        assert image.pread(1000, 3000) == model[1000:4000]
        assert image.check().corruptions == 0
    if mode == "luks":
        with open_image(path, writable=True, secret=b"geheim") as image:
            image.pwrite(777, b"new")
        assert qemu_read(path, tmp_path) == model[:777] + b"new" + model[780:]
    else:
        with (
            open_image(path, writable=True, secret=b"geheim") as image,
            pytest.raises(UnsupportedImage),
        ):
            image.pwrite(0, b"new")


def test_without_or_with_a_wrong_passphrase_nothing_is_read():
    storage = Memory()
    FORMAT.create(storage, MIB, FAST)
    with pytest.raises(ImageAccessDenied):
        FORMAT.open(storage, OpenOptions(secret=b"falsch"))
    image = FORMAT.open(storage, OpenOptions(writable=True))
    with pytest.raises(ImageAccessDenied):
        image.pwrite(0, b"x")
    assert image.info().encrypted


def test_encryption_options_that_do_not_exist_are_refused():
    for wrong in (
        {"encrypt.format": "aes"},
        {"encryption": "on"},
        {"encrypt.format": "luks"},
        FAST | {"encrypt.cipher-alg": "serpent-256"},
        FAST | {"encrypt.iter-time": "soon"},
    ):
        with pytest.raises(UsageError):
            FORMAT.create(Memory(), MIB, wrong)
