"""Mutated qcow2 images: whatever the bytes, only an ImageError may come out.

Run by itself for a long hunt::

    python -m tests.fuzz.qcow2_mutations 100000

Every image is named by its seed, so a finding is repeated with ``--seed N``. Reports the
slowest image and the most memory; exits 1 on a finding, or beyond 1 s or 64 MiB.
"""

import argparse
import gc
import random
import resource
import sys
import time
import traceback
import zlib
from functools import cache

from tests.image.qcow2.support import Memory
from wirt.errors import ImageError
from wirt.image.base import Budget, OpenOptions
from wirt.image.formats.qcow2 import FORMAT

SIZE = 300_000
SHAPES = (
    {"cluster_size": "512"},
    {"cluster_size": "1024", "refcount_bits": "1"},
    {"compat": "0.10", "cluster_size": "512"},
    {"cluster_size": "16384", "extended_l2": "on"},
    {"cluster_size": "4096", "refcount_bits": "64", "lazy_refcounts": "on"},
    {"cluster_size": "512", "backing_file": "/etc/passwd", "backing_fmt": "raw"},
    {"cluster_size": "512", "data_file": "/etc/passwd"},
    {"cluster_size": "65536", "compression_type": "zstd"},
)
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF)
BUDGET = Budget(seconds=1.0, metadata_bytes=16 << 20)
READING = OpenOptions(budget=BUDGET, with_backing=False)


@cache
def base_image(index: int) -> bytes:
    storage = Memory()
    options = SHAPES[index]
    FORMAT.create(storage, SIZE, options)
    image = FORMAT.open(storage, OpenOptions(writable=True, with_backing=False))
    if "data_file" in options:
        return bytes(storage.data)
    rng = random.Random(index)
    for _ in range(12):
        offset = rng.randrange(SIZE - 9000)
        image.pwrite(offset, rng.randbytes(rng.randrange(1, 9000)))
    image.write_zeroes(100_000, 20_000)
    if "compression_type" not in options:
        packer = zlib.compressobj(wbits=-12)
        unit = image.compression_unit
        image.write_compressed(0, packer.compress(bytes(unit)) + packer.flush(), bytes(unit))
    image.flush()
    if options.get("refcount_bits") != "1":
        image.snapshot_create("one")
        image.pwrite(5000, b"x" * 3000)
        image.snapshot_create("two")
    if options.get("compat") != "0.10":
        image.bitmap_add("bitmap", granularity=512)
    image.flush()
    image.bitmaps()
    return bytes(storage.data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 200))):
        where = rng.choice((rng.randrange(120), rng.randrange(1024), rng.randrange(len(changed))))
        width = rng.choice((1, 1, 2, 4, 8))
        where = min(where // width * width, len(changed) - width)
        kind = rng.randrange(4)
        if kind == 0:
            changed[where] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[where : where + width] = bytes([rng.choice(INTERESTING)]) * width
        elif kind == 2:
            changed[where : where + width] = rng.randbytes(width)
        else:
            source = rng.randrange(len(changed) - 8) & ~7
            target = where & ~7
            changed[target : target + 8] = changed[source : source + 8]
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


class Disk(Memory):
    limit = 16 << 20


def exercise(data: bytes, rng: random.Random) -> None:
    """Do with the image what a user could do. Every part may fail, but only in one way."""
    for part in (_read, _look_inside, _write, _check, _repair):
        try:
            part(data, rng)
        except ImageError:
            continue


def _read(data, rng):
    image = FORMAT.open(Disk(data, read_only=True), READING)
    image.info()
    length = min(image.virtual_size, 1 << 20)
    for _ in range(3):
        offset = rng.randrange(max(1, image.virtual_size - 4096))
        image.pread(offset, min(4096, image.virtual_size - offset))
    image.pread(0, length)
    for number, _ in enumerate(image.extents(0, image.virtual_size)):
        if number > 20_000:
            break


def _look_inside(data, rng):
    image = FORMAT.open(Disk(data, read_only=True), READING)
    for snapshot in image.snapshots()[:8]:
        view = image.snapshot_view(snapshot.id)
        view.pread(0, min(view.virtual_size, 65536))
    for bitmap in image.bitmaps()[:4]:
        for number, _ in enumerate(image.bitmap_dirty(bitmap.name)):
            if number > 1000:
                break


def _write(data, rng):
    image = FORMAT.open(Disk(data), OpenOptions(writable=True, budget=BUDGET, with_backing=False))
    size = min(image.virtual_size, SIZE)
    image.pwrite(rng.randrange(max(1, size - 5000)), bytes(min(size, 5000)))
    image.write_zeroes(0, min(size, 70_000))
    image.flush()
    action = rng.randrange(6)
    if action == 0:
        image.snapshot_create("new")
    elif action == 1 and image.snapshots():
        image.snapshot_apply(image.snapshots()[0].id)
    elif action == 2 and image.snapshots():
        image.snapshot_delete(image.snapshots()[0].id)
    elif action == 3:
        image.resize(rng.randrange(1, 2000) * 512)
    elif action == 4:
        image.bitmap_add("fresh")
    image.flush()


def _check(data, rng):
    FORMAT.open(Disk(data, read_only=True), READING).check()


def _repair(data, rng):
    options = OpenOptions(writable=True, allow_dirty=True, budget=BUDGET)
    FORMAT.open(Disk(data), options).check(repair=rng.choice(("leaks", "all")))


def run_seed(seed: int) -> None:
    """Raises whatever escapes, except ImageError."""
    rng = random.Random(seed)
    exercise(mutate(base_image(rng.randrange(len(SHAPES))), rng), rng)


def refuse_opens(event: str, arguments: tuple) -> None:
    """An audit hook: the parser opens no file that an image names."""
    if event == "open" and arguments[0] == "/etc/passwd":
        raise AssertionError("a file that the image names was opened")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    for index in range(len(SHAPES)):
        base_image(index)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worst, slowest, findings = 0.0, -1, 0
    sys.addaudithook(refuse_opens)
    for seed in range(given.seed, given.seed + given.count):
        start = time.process_time()
        try:
            run_seed(seed)
        except Exception:  # noqa: BLE001  # whatever escapes is the finding
            findings += 1
            print(f"seed {seed}:", file=sys.stderr)
            traceback.print_exc()
        spent = time.process_time() - start
        if spent > worst:
            worst, slowest = spent, seed
        if seed % 1000 == 999:
            gc.collect()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(
        f"{given.count} images, {findings} findings, slowest {worst:.2f} s (seed {slowest}), "
        f"memory grew by {grown} MiB"
    )
    return 1 if findings or worst > 1 or grown > 64 else 0


if __name__ == "__main__":
    sys.exit(main())
