"""LUKS disks, against cryptsetup and qemu-img.

cryptsetup enciphers a payload without the kernel's device mapper when it re-encrypts a file
that nobody uses: so version 2 has a real producer here.
"""

import hashlib
import json
import os
import random
import struct
import subprocess

import pytest

from tests.image.formats.support import MIB, made, mutated, opened, read_all
from tests.image.qemu_keys import run_qemu_img
from wirt.errors import (
    CorruptImage,
    ImageAccessDenied,
    ImageError,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import Budget, ExtentKind
from wirt.image.convert import ConvertSettings, convert
from wirt.image.open import open_image
from wirt.image.probe import probe_file

SECRET = b"correct horse"
PAYLOAD = 16 * MIB
CIPHERS = {
    "xts": {},
    "xts-128": {"cipher-alg": "aes-128"},
    "cbc-essiv": {"cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha256"},
    "cbc-plain": {"cipher-mode": "cbc", "ivgen-alg": "plain", "hash-alg": "sha512"},
}


def run(*words, stdin=SECRET):
    done = subprocess.run(
        [str(word) for word in words], input=stdin, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def qemu_options(directory, path):
    key = directory / "key"
    key.write_bytes(SECRET)
    return (
        "--object", f"secret,id=s,file={key}",
        "--image-opts", f"driver=luks,key-secret=s,file.filename={path}",
    )  # fmt: skip


def converted_by_qemu(raw, path, options):
    key = path.with_suffix(".key")
    key.write_bytes(SECRET)
    chosen = "".join(f",{k}={v}" for k, v in options.items())
    words = [
        "convert", "--object", f"secret,id=s,file={key}", "-f", "raw", "-O", "luks",
        "-o", f"key-secret=s,iter-time=10{chosen}", raw, path,
    ]  # fmt: skip
    done = run_qemu_img(words)
    assert done.returncode == 0, done.stderr
    return path


def by_qemu(path, directory):
    out = directory / "by-qemu.raw"
    run("qemu-img", "convert", *qemu_options(directory, path), "-O", "raw", out)
    return out.read_bytes()


@pytest.mark.needs_qemu_img
@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_qemu_writes_is_read_and_what_is_written_is_what_qemu_reads(cipher, tmp_path):
    data = random.Random(1).randbytes(MIB + 512)
    raw = tmp_path / "r.raw"
    raw.write_bytes(data)
    theirs = converted_by_qemu(raw, tmp_path / "q.luks", CIPHERS[cipher])
    assert probe_file(str(theirs)) == "luks"
    with opened(theirs, secret=SECRET) as image:
        assert read_all(image) == data
    ours = made(
        tmp_path / "o.luks", "luks", len(data), **{"iter-time": "10", "secret": SECRET.decode()},
        **CIPHERS[cipher],
    )  # fmt: skip
    chance = random.Random(2)
    for path in (theirs, ours):
        model = bytearray(data)
        with opened(path, writable=True, secret=SECRET) as image:
            image.pwrite(0, data)
            for _ in range(30):
                length = chance.choice([1, 511, 512, 5000, 70_000])
                offset = chance.randrange(len(data) - length)
                if chance.random() < 0.7:
                    part = chance.randbytes(length)
                    image.pwrite(offset, part)
                else:
                    part = bytes(length)
                    image.write_zeroes(offset, length)
                model[offset : offset + length] = part
            image.flush()
            assert read_all(image) == model
        assert by_qemu(path, tmp_path) == model


@pytest.mark.needs_tool("cryptsetup")
def test_cryptsetup_opens_what_is_made(tmp_path):
    path = made(tmp_path / "o.luks", "luks", MIB, **{"iter-time": "10", "secret": SECRET.decode()})
    run("cryptsetup", "isLuks", "--type", "luks1", path)
    run("cryptsetup", "open", "--test-passphrase", path, "--key-file", "-")
    assert "xts-plain64" in run("cryptsetup", "luksDump", path)


@pytest.mark.needs_qemu_img
def test_what_is_not_stored_elsewhere_becomes_zeros_in_a_new_disk(tmp_path):
    raw = tmp_path / "sparse.raw"
    with raw.open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB)
        file.write(b"x" * 5000)
    target = tmp_path / "t.luks"
    options = {"iter-time": "10", "encrypt.secret": SECRET.decode()}
    settings = ConvertSettings(options=options, secret=SECRET)
    with open_image(str(raw), format="raw") as source:
        convert([source], str(target), "luks", settings)
    assert by_qemu(target, tmp_path) == raw.read_bytes()


@pytest.mark.needs_qemu_img
def test_a_disk_that_grows_has_zeros_behind(tmp_path):
    path = made(tmp_path / "g.luks", "luks", MIB, **{"iter-time": "10", "secret": SECRET.decode()})
    with opened(path, writable=True, secret=SECRET) as image:
        image.pwrite(0, b"a" * MIB)
        image.resize(2 * MIB + 512)
        image.resize(2 * MIB)
    assert by_qemu(path, tmp_path) == b"a" * MIB + bytes(MIB)
    with opened(path, writable=True) as image, pytest.raises(ImageAccessDenied):
        image.resize(3 * MIB)
    assert by_qemu(path, tmp_path) == b"a" * MIB + bytes(MIB)


def test_without_its_passphrase_a_disk_is_only_looked_at(tmp_path):
    path = made(tmp_path / "o.luks", "luks", MIB, **{"iter-time": "10", "secret": SECRET.decode()})
    with opened(path) as image:
        info = image.info()
        assert info.encrypted
        assert info.specific["cipher"] == "aes-xts-plain64"
        assert [run.kind for run in image.extents(0, MIB)] == [ExtentKind.DATA]
        with pytest.raises(ImageAccessDenied, match="encrypted"):
            image.pread(0, 512)
    with pytest.raises(ImageAccessDenied, match="passphrase"):
        opened(path, secret=b"wrong")
    with pytest.raises(UsageError, match="passphrase"):
        made(tmp_path / "n.luks", "luks", MIB)


KDFS = {
    "pbkdf2": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
    "argon2id": [
        "--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "2048",
        "--pbkdf-parallel", "2",
    ],
    "argon2i": [
        "--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024",
        "--pbkdf-parallel", "1",
    ],
}  # fmt: skip
SECTORS = {
    "512": ["--sector-size", "512"],
    "1024": ["--sector-size", "1024"],
    "2048": ["--sector-size", "2048"],
    "4096": ["--sector-size", "4096"],
    "cbc-essiv": ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
    "cbc-plain64, 4096": [
        "--cipher", "aes-cbc-plain64", "--key-size", "128", "--sector-size", "4096",
    ],
}  # fmt: skip


def luks2(directory, *options, kdf="pbkdf2", size=MIB):
    """Let cryptsetup encipher a file; return it and the bytes at the start of its disk."""
    path = directory / "v2.luks"
    data = random.Random(3).randbytes(size)
    path.write_bytes(data)
    os.truncate(path, size + 2 * PAYLOAD)
    run(
        "cryptsetup", "reencrypt", "--encrypt", "--type", "luks2", "--force-offline-reencrypt",
        "--reduce-device-size", "32M", "--batch-mode", "--key-file", "-",
        *KDFS[kdf], *options, path,
    )  # fmt: skip
    return path, data


@pytest.mark.needs_tool("cryptsetup")
@pytest.mark.parametrize("sectors", SECTORS)
def test_version_2_of_every_cipher_and_sector_size_is_read(sectors, tmp_path):
    path, data = luks2(tmp_path, *SECTORS[sectors])
    assert probe_file(str(path)) == "luks"
    chance = random.Random(4)
    with opened(path, secret=SECRET) as image:
        assert image.virtual_size == len(data) + PAYLOAD
        assert image.pread(0, MIB) == data
        for _ in range(60):
            length = chance.choice([1, 511, 512, 4096, 9000])
            offset = chance.randrange(MIB - length)
            assert image.pread(offset, length) == data[offset : offset + length]
    with opened(path, writable=True) as image:
        assert image.info().specific["version"] == 2
        with pytest.raises(ImageAccessDenied):
            image.pread(0, 512)


@pytest.mark.needs_tool("cryptsetup")
@pytest.mark.parametrize("kdf", KDFS)
def test_version_2_opens_with_any_of_its_passphrases(kdf, tmp_path):
    path, data = luks2(tmp_path, kdf=kdf)
    other = tmp_path / "other"
    other.write_bytes(b"battery staple")
    run("cryptsetup", "luksAddKey", "--batch-mode", *KDFS[kdf], "--key-file", "-", path, other)
    for secret in (SECRET, b"battery staple"):
        with opened(path, secret=secret) as image:
            assert image.pread(0, MIB) == data[:MIB]
    with pytest.raises(ImageAccessDenied, match="passphrase"):
        opened(path, secret=b"wrong")
    run("cryptsetup", "luksKillSlot", "--batch-mode", "--key-file", "-", path, "1")
    with pytest.raises(ImageAccessDenied, match="passphrase"):
        opened(path, secret=b"battery staple")


def rewritten(path, change, *, copies=(0, 16384)):
    """Change the JSON of the header's copies, with right checksums."""
    raw = bytearray(path.read_bytes())
    for at in copies:
        text = json.loads(raw[at + 4096 : at + 16384].split(b"\0")[0])
        change(text)
        raw[at + 4096 : at + 16384] = json.dumps(text).encode().ljust(12288, b"\0")
        checksummed(raw, at)
    path.write_bytes(raw)


def checksummed(raw, at):
    raw[at + 448 : at + 512] = bytes(64)
    digest = hashlib.sha256(raw[at : at + 16384]).digest()
    raw[at + 448 : at + 480] = digest


@pytest.mark.needs_tool("cryptsetup")
def test_the_newer_of_the_intact_copies_counts(tmp_path):
    path, data = luks2(tmp_path)
    whole = path.read_bytes()

    def beginning(raw):
        path.write_bytes(raw)
        with opened(path, "luks", secret=SECRET) as image:
            return image.pread(0, 4096)

    for damaged in (0, 5000, 16384, 20000):
        raw = bytearray(whole)
        raw[damaged] ^= 1
        assert beginning(raw) == data[:4096]
    raw = bytearray(whole)
    raw[5000] ^= 1
    raw[20000] ^= 1
    with pytest.raises(CorruptImage, match="both copies"):
        beginning(raw)
    # An older first copy that would decipher to something else.
    path.write_bytes(whole)
    rewritten(path, lambda text: text["segments"]["0"].update(iv_tweak="8"), copies=(0,))
    raw = bytearray(path.read_bytes())
    struct.pack_into(">Q", raw, 16, 1)
    checksummed(raw, 0)
    assert beginning(raw) == data[:4096]


@pytest.mark.needs_tool("cryptsetup")
def test_a_disk_of_several_segments(tmp_path):
    """As in a re-encryption that has stopped half way, without its requirement."""
    path, data = luks2(tmp_path)
    half = MIB // 2

    def split(text):
        whole = text["segments"]["0"]
        text["segments"] = {
            "0": {**whole, "size": str(half)},
            "1": {
                **whole,
                "offset": str(PAYLOAD + half),
                "iv_tweak": str(half // 512),
                "size": "4096",
            },
            "10": {"type": "linear", "offset": str(PAYLOAD), "size": "dynamic"},
            "2": {"type": "linear", "offset": "0", "size": "8192"},
            "11": {**whole, "flags": ["backup-final"]},
        }
        text["digests"]["0"]["segments"] = ["0", "1"]

    rewritten(path, split)
    raw = path.read_bytes()
    expected = data[: half + 4096] + raw[:8192] + raw[PAYLOAD:]
    with opened(path, secret=SECRET) as image:
        assert image.virtual_size == len(expected)
        assert image.pread(half - 1000, 30_000) == expected[half - 1000 : half + 29_000]
        assert image.pread(0, 600_000) == expected[:600_000]
        assert image.pread(len(expected) - 9000, 9000) == expected[-9000:]


@pytest.mark.needs_tool("cryptsetup")
def test_what_an_image_may_ask_for_is_bounded(tmp_path):
    path, _ = luks2(tmp_path, kdf="argon2id")
    whole = path.read_bytes()

    def refused(kind, words, change):
        path.write_bytes(whole)
        rewritten(path, change)
        with pytest.raises(kind, match=words):
            opened(path, secret=SECRET)

    def kdf(**values):
        return lambda text: text["keyslots"]["0"]["kdf"].update(values)

    def slot(**values):
        return lambda text: text["keyslots"]["0"].update(values)

    def segment(**values):
        return lambda text: text["segments"]["0"].update(values)

    refused(OutOfBounds, "MiB to derive", kdf(memory=2 << 20))
    refused(OutOfBounds, "passes", kdf(time=100_000))
    refused(OutOfBounds, "processors", kdf(cpus=1000))
    refused(OutOfBounds, "iterations", kdf(type="pbkdf2", hash="sha256", iterations=1 << 40))
    refused(UnsupportedImage, "not supported", kdf(type="scrypt"))
    refused(CorruptImage, "bytes", slot(key_size=1 << 30))
    refused(
        CorruptImage, "stripes", slot(af={"type": "luks1", "stripes": 1 << 30, "hash": "sha256"})
    )
    refused(CorruptImage, "beyond the end", slot(area={"type": "raw", "offset": "9" * 18,
            "size": "1", "encryption": "aes-xts-plain64", "key_size": 64}))  # fmt: skip
    refused(CorruptImage, "no number", segment(offset="-1"))
    refused(CorruptImage, "sectors", segment(sector_size=8192))
    refused(UnsupportedImage, "cipher", segment(encryption="twofish-xts-plain64"))
    refused(UnsupportedImage, "segments", segment(integrity={"type": "hmac(sha256)"}))
    refused(UnsupportedImage, "online-reencrypt", lambda text: text["config"].update(
        requirements={"mandatory": ["online-reencrypt"]}))  # fmt: skip
    refused(ImageAccessDenied, "passphrase", slot(priority=0))
    refused(CorruptImage, "JSON", lambda text: text.pop("digests"))
    path.write_bytes(whole)
    with pytest.raises(OutOfBounds):
        opened(path, secret=SECRET, budget=Budget(key_memory=1 << 20))


def test_damaged_disks_of_version_1_raise_nothing_but_image_errors(tmp_path):
    path = made(
        tmp_path / "m.luks", "luks", 64 << 10, **{"iter-time": "1", "secret": SECRET.decode()}
    )
    mutated(path, "luks", tmp_path, head=600, count=60, secret=SECRET)
    mutated(path, "luks", tmp_path, head=600, count=60, seed=3)


@pytest.mark.needs_tool("cryptsetup")
def test_damaged_disks_of_version_2_raise_nothing_but_image_errors(tmp_path):
    path, _ = luks2(tmp_path, size=4096)
    whole = path.read_bytes()[: PAYLOAD + 8192]
    chance = random.Random(6)
    victim = tmp_path / "victim"
    for number in range(150):
        raw = bytearray(whole)
        text = bytearray(raw[4096:16384].split(b"\0")[0])
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(len(text))
            text[at] = chance.choice([*b'0123456789{}[]",:-eE', chance.randrange(256)])
        if number % 10 == 0:
            text = b"[" * chance.randrange(12_000)
        raw[4096:16384] = text.ljust(12288, b"\0")
        raw[16384] = 0
        checksummed(raw, 0)
        with victim.open("wb") as file:
            file.write(raw)
        try:
            with opened(victim, "luks", secret=SECRET, budget=Budget(key_memory=1 << 22)) as image:
                image.info()
                image.pread(0, min(image.virtual_size, 4096))
        except ImageError:
            pass
