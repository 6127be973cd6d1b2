"""What the tests of the operations share: disks in many allocation states, and the oracle."""

import random
import subprocess
from contextlib import contextmanager

from wirt.image.base import AllowLocalFiles
from wirt.image.create import create_image
from wirt.image.open import open_image

MIB = 1 << 20
KIB = 1 << 10


@contextmanager
def opened(path, name=None, **options):
    with open_image(str(path), format=name, gate=AllowLocalFiles(), **options) as image:
        yield image


def content(path, name=None, **options):
    with opened(path, name, **options) as image:
        return image.pread(0, image.virtual_size)


def qemu_img(*words, ok=(0,)):
    done = subprocess.run(
        ["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode in ok, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def as_qemu_reads(path, name):
    raw = path.with_name(path.name + ".by-qemu")
    qemu_img("convert", "-f", name, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def assert_identical(path, name, model):
    """The end of every write test: our reading, QEMU's reading, both checks."""
    found = content(path, name)
    if found != model:
        at = next(i for i in range(len(model)) if found[i : i + 1] != model[i : i + 1])
        raise AssertionError(f"the disk differs from the model at {at:#x}")
    assert as_qemu_reads(path, name)[: len(model)] == model
    if name == "qcow2":
        qemu_img("check", "-f", name, path)
        with opened(path, name) as image:
            result = image.check()
            assert (result.corruptions, result.leaks) == (0, 0), result.messages


def patterned(seed, size, unit):
    """Return bytes with data, zeros, and data that begins or ends with zeros, unit by unit."""
    dice = random.Random(seed)
    parts = []
    done = 0
    while done < size:
        length = min(dice.choice((unit // 2, unit, 3 * unit, unit + 512)), size - done)
        parts.append(_part(dice, length))
        done += length
    return bytearray(b"".join(parts))


def _part(dice, length):
    kind = dice.randrange(5)
    if kind == 0:
        return bytes(length)
    if kind == 1:
        return bytes(length // 2) + dice.randbytes(length - length // 2)
    if kind == 2:
        return dice.randbytes(length // 2) + bytes(length - length // 2)
    if kind == 3:
        return (b"wirt" * (length // 4 + 1))[:length]
    return dice.randbytes(length)


def mixed(path, seed=1, size=6 * MIB, **options):
    """Make a qcow2 disk in every allocation state, over a shorter backing image.

    Returns the bytes that the guest sees.
    """
    below = path.with_name(path.name + ".below")
    lower = patterned(seed, size - MIB, 64 * KIB)
    create_image(str(below), "qcow2", len(lower))
    with opened(below, "qcow2", writable=True) as image:
        image.pwrite(0, lower)
    create_image(
        str(path), "qcow2", size, backing=below.name, backing_format="qcow2", options=options
    )
    model = bytearray(lower + bytes(MIB))
    dice = random.Random(seed + 1)
    with opened(path, "qcow2", writable=True) as image:
        for _ in range(24):
            offset = dice.randrange(size // 4096) * 4096
            length = min(dice.choice((4096, 65536, 200 * KIB)), size - offset)
            if dice.random() < 0.3:
                image.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                data = bytes(patterned(dice.random(), length, 4096))
                image.pwrite(offset, data)
                model[offset : offset + length] = data
    return bytes(model)
