"""What the tests of all formats share: samples, oracles, the model and the mutations."""

import lzma
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from wirt.errors import ImageError
from wirt.image.base import AllowLocalFiles, Budget, Checkable, ExtentKind
from wirt.image.create import create_image
from wirt.image.open import open_image

MIB = 1 << 20
SAMPLES = Path(
    os.environ.get("WIRT_SAMPLES") or Path(__file__).parents[4] / "shared" / "data" / "images"
)


def sample(name, directory):
    """Unpack a sample that this project did not write; skip where there is none."""
    packed = SAMPLES / f"{name}.xz"
    if not packed.exists():
        pytest.skip(f"the sample {name} is not here: put it into shared/data/images")
    path = directory / name
    with lzma.open(packed) as source, path.open("wb") as target:
        while piece := source.read(MIB):
            if piece.count(0) == len(piece):
                target.seek(len(piece), os.SEEK_CUR)
            else:
                target.write(piece)
        target.truncate()
    return path


def opened(path, name=None, *, writable=False, **options):
    return open_image(str(path), format=name, writable=writable, gate=AllowLocalFiles(), **options)


def read_all(image):
    return image.pread(0, image.virtual_size)


def chain_read(path, name=None):
    with opened(path, name) as image:
        return read_all(image)


def by_qemu(path, name, directory, *options):
    """Return the disk as qemu-img reads it."""
    out = directory / "by-qemu.raw"
    command = ["qemu-img", "convert", *options, "-f", name, "-O", "raw", str(path), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    data = out.read_bytes()
    out.unlink()
    return data


def sample_is_as_qemu_reads_it(path, name):
    """Compare without writing the disk out: samples may declare many gigabytes."""
    shutil.copy(path, path.with_suffix(".ours"))
    mine = path.with_suffix(".raw")
    with opened(path, name) as image, mine.open("wb") as out:
        out.truncate(image.virtual_size)
        offset = 0
        while offset < image.virtual_size:
            length = min(64 * MIB, image.virtual_size - offset)
            for run in image.extents(offset, length):
                if run.kind is ExtentKind.DATA:
                    out.seek(run.offset)
                    out.write(image.pread(run.offset, run.length))
            offset += length
    command = ["qemu-img", "compare", "-f", name, "-F", "raw", str(path), str(mine)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def check_by_qemu(path, name, ok=(0,)):
    done = subprocess.run(
        ["qemu-img", "check", "-f", name, str(path)],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode in ok, done.stdout + done.stderr


def made(path, name, size, *, backing="", **options):
    create_image(
        str(path), name, size, backing=backing, backing_format=name if backing else "",
        options=options,
    )  # fmt: skip
    return path


def random_write(image, model, chance):
    """Do one random thing to the image and to its model."""
    size = len(model)
    length = min(size, chance.choice([1, 511, 512, 4096, 70000, MIB + 3, 3 * MIB]))
    offset = chance.randrange(size - length + 1)
    what = chance.choice(["write", "write", "write", "zero", "discard", "flush"])
    if what == "write":
        data = chance.randbytes(length)
        image.pwrite(offset, data)
        model[offset : offset + length] = data
    elif what == "flush":
        image.flush()
    else:
        (image.write_zeroes if what == "zero" else image.discard)(offset, length)
        model[offset : offset + length] = bytes(length)


def written_out_of_order(image, model, chance, block):
    """Fill single blocks from the disk's end to its start, every third left alone."""
    for offset in range(len(model) - block, -1, -3 * block):
        data = chance.randbytes(block // 2)
        image.pwrite(offset, data)
        model[offset : offset + len(data)] = data


def exercised(path, name, model, *, seed=1, rounds=25, block=2 * MIB):
    """Write at random, reopening now and then; the image must stay as its model."""
    chance = random.Random(seed)
    with opened(path, name, writable=True) as image:
        written_out_of_order(image, model, chance, min(block, len(model)))
        assert read_all(image) == model
    for _ in range(3):
        with opened(path, name, writable=True) as image:
            for _ in range(rounds // 3):
                random_write(image, model, chance)
            assert read_all(image) == model
    with opened(path, name) as image:
        assert read_all(image) == model
        covered = 0
        for run in image.extents(0, image.virtual_size):
            assert run.offset == covered
            covered = run.end
        assert covered == image.virtual_size


def mutated(path, name, directory, *, count=120, seed=7, head=8192, others=(), **options):
    """Open and read damaged copies: nothing but an ImageError may come out."""
    chance = random.Random(seed)
    original = path.read_bytes()
    victim = directory / f"victim-{path.name}"
    budget = Budget(expansion=4, expansion_floor=8 * MIB, metadata_bytes=4 * MIB)
    for number in range(count):
        data = bytearray(original)
        for _ in range(chance.choice([1, 1, 2, 5])):
            near = chance.random() < 0.8
            low = 0 if chance.random() < 0.7 else max(0, len(data) - 1024)
            at = chance.randrange(low, min(len(data), low + head) if near else len(data))
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        victim.write_bytes(data)
        try:
            with opened(victim, name, budget=budget, **options) as image:
                limit = min(image.virtual_size, 16 * MIB)
                image.pread(0, limit)
                image.info()
                if isinstance(image, Checkable):
                    image.check()
                tail = min(image.virtual_size, MIB)
                list(image.extents(image.virtual_size - tail, tail))
        except ImageError:
            pass
        except Exception as error:  # the point of the test: name the mutation that got through
            raise AssertionError(f"mutation {number} of {path.name}") from error
