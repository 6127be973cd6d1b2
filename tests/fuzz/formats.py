"""Damaged images of every format: only declared errors, in little time, memory and files.

Run by itself for a long hunt::

    python -m tests.fuzz.formats 100000

The formats are those of the registry, so a new one is tried without a word here. Each image
is read, looked into, checked and written to under limits that the kernel keeps:

- a second of CPU time (``ITIMER_PROF`` kills the process),
- 64 MiB of new address space (``RLIMIT_AS``: more is a MemoryError),
- 64 MiB of file (``RLIMIT_FSIZE``),
- no file but the image and what was made with it (an audit hook sees every ``open``).

Images are named by their number: ``--first N`` repeats a finding.
"""

import argparse
import contextlib
import gc
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from tests.fuzz.checksums import mend
from tests.fuzz.seeds import Seed, make_seeds
from wirt.errors import ImageError, UsageError
from wirt.image.base import (
    Budget,
    Checkable,
    HasBitmaps,
    HasSnapshots,
    Resizable,
    WritableImage,
)
from wirt.image.gate import Neighbours
from wirt.image.open import open_image
from wirt.image.probe import claims
from wirt.image.storage.file import FileStorage

MIB = 1 << 20
SECONDS = 1.0
MEMORY = 64 * MIB
BUDGET = Budget(seconds=0.8, metadata_bytes=16 * MIB, expansion=64, expansion_floor=16 * MIB)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
            1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_PARTS = 20_000
_MOST_READ = MIB


def mutate(seed: Seed, original: bytes, dice: random.Random) -> bytearray:
    """Return a damaged copy; damage prefers what is not zero, since that means something."""
    data = bytearray(original)
    full = [at for at in range(0, len(data), 512) if any(data[at : at + 512])] or [0]
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16, 100))):
        sector = dice.choice((full[0], full[-1], dice.choice(full[:8]), dice.choice(full)))
        at = min(sector + dice.randrange(512), len(data) - 1)
        _damage(data, at, dice)
    if dice.random() < 0.5:
        mend(seed.format, data)
    if dice.random() < 0.1:
        del data[dice.randrange(len(data)) :]
    return data


def _damage(data: bytearray, at: int, dice: random.Random) -> None:
    width = dice.choice((1, 1, 2, 4, 8))
    at = min(at // width * width, max(0, len(data) - width))
    kind = dice.randrange(5)
    if kind == 0:
        data[at] ^= 1 << dice.randrange(8)
    elif kind == 1:
        data[at : at + width] = dice.randbytes(width)
    elif kind == 2:
        number = dice.choice(_NUMBERS) + dice.choice((0, 0, -1, 1))
        order = dice.choice("<>")
        data[at : at + width] = struct.pack(f"{order}Q", number % (1 << 64))[
            : width if order == "<" else None
        ][-width:]
    elif kind == 3:
        source = dice.randrange(max(1, len(data) - 8)) & ~7
        data[at : at + width] = data[source : source + width]
    else:
        value = int.from_bytes(data[at : at + width], dice.choice(("little", "big")))
        value = (value + dice.choice((-512, -1, 1, 512, 65536))) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, dice.choice(("little", "big")))


def exercise(path: Path, name: str, dice: random.Random) -> int:
    """Do with the image what a user could; return how many parts did not end in an error."""
    done = 0
    for part in (_probe, _read, _look_inside, _check, _write):
        try:
            part(str(path), name, dice)
            done += 1
        except ImageError:
            continue
    return done


def _opened(path, name, **options):
    return open_image(path, format=name, gate=Neighbours(), budget=BUDGET, **options)


def _probe(path, name, dice):
    with FileStorage(path) as storage:
        claims(storage)


def _read(path, name, dice):
    with _opened(path, name, with_backing=dice.random() < 0.7) as image:
        image.info()
        size = image.virtual_size
        for _ in range(3):
            offset = dice.randrange(max(1, size - 4096))
            image.pread(offset, min(4096, size - offset))
        image.pread(0, min(size, _MOST_READ))
        image.pread(max(0, size - 65536), min(size, 65536))
        for number, _ in enumerate(image.extents(0, size)):
            if number > _PARTS:
                break


def _look_inside(path, name, dice):
    with _opened(path, name, with_backing=False) as image:
        if isinstance(image, HasSnapshots):
            for snapshot in image.snapshots()[:4]:
                view = image.snapshot_view(snapshot.id)
                view.pread(0, min(view.virtual_size, 65536))
        if isinstance(image, HasBitmaps):
            for bitmap in image.bitmaps()[:4]:
                for number, _ in enumerate(image.bitmap_dirty(bitmap.name)):
                    if number > 1000:
                        break


def _check(path, name, dice):
    with _opened(path, name, with_backing=False, allow_dirty=True) as image:
        if isinstance(image, Checkable):
            image.check()


def _write(path, name, dice):
    repair = dice.choice(("", "", "leaks", "all"))
    with _opened(path, name, writable=True, with_backing=False, allow_dirty=True) as image:
        if repair and isinstance(image, Checkable):
            image.check(repair=repair)
        if not isinstance(image, WritableImage):
            return
        size = image.virtual_size
        for _ in range(2):
            offset = dice.randrange(max(1, size - 5000))
            image.pwrite(offset, bytes(min(5000, size - offset)))
        image.write_zeroes(0, min(size, 70_000))
        image.flush()
        if isinstance(image, Resizable) and dice.random() < 0.3:
            with contextlib.suppress(UsageError):
                image.resize(min(size, 64 * MIB) + dice.choice((-65536, 65536)))


# One process that works under limits


class Watch:
    """Remembers the files that were opened while it is on, other than those allowed."""

    def __init__(self) -> None:
        self.allowed: str = ""
        self.strange: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event != "open" or not self.allowed or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        # A directory cannot be read as a file, and Python's modules are no images.
        if not f"{path}/".startswith(self.allowed) and not path.endswith((".py", ".pyc", ".so")):
            self.strange.append(path)


def work(place: Path, first: int, count: int) -> None:
    """Try images; print a line for each finding, and the number before each image."""
    sys.dont_write_bytecode = True  # a cache file of Python is no file that an image led to
    # Else a number would name another image each time.
    os.urandom = random.Random(1).randbytes
    time.time, time.time_ns = lambda: 1_700_000_000.0, lambda: 1_700_000_000_000_000_000
    seeds = sorted(make_seeds(place / "seeds"), key=lambda seed: (str(seed.path), seed.format))
    originals = [_files_of(seed) for seed in seeds]
    _import_all(seeds)
    gc.freeze()  # what is collected between images is then only theirs
    watch = Watch()
    threading.stack_size(256 << 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for number in range(first, first + count):
        print(f"# {number}", flush=True)
        dice = random.Random(number)
        index = number % len(seeds)
        seed = seeds[index]
        seed.path.write_bytes(mutate(seed, originals[index][seed.path], dice))
        _limited(seed, dice, number, watch)
        for path, data in originals[index].items():
            path.write_bytes(data)
        for path in watch.strange:
            print(f"! {number} {seed.format}: opened {path}", flush=True)
        watch.strange.clear()
    print("# done", flush=True)


def _files_of(seed: Seed) -> dict[Path, bytes]:
    """Return the image, and what was made beside it: the only files it may open."""
    return {path: path.read_bytes() for path in seed.path.parent.rglob("*") if path.is_file()}


def _limited(seed: Seed, dice: random.Random, number: int, watch: Watch) -> None:
    gc.collect()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, hard))
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.allowed = f"{seed.path.parent}/"
    try:
        done = exercise(seed.path, seed.format, dice)
        failure = ""
    except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
        done = 0
        lines = traceback.extract_tb(error.__traceback__)
        failure = f"{type(error).__name__}: {error} at {lines[-1].filename}:{lines[-1].lineno}"
    watch.allowed = ""
    signal.setitimer(signal.ITIMER_PROF, 0)
    spent = time.process_time() - began
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(f"= {seed.format} {spent:.4f} {done}", flush=True)
    if failure:
        print(f"! {number} {seed.format}: {failure}", flush=True)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _import_all(seeds: list[Seed]) -> None:
    """Do everything once with sound images: what is imported then is no cost of a damaged one."""
    for seed in seeds:
        data = seed.path.read_bytes()
        for turn in range(4):
            exercise(seed.path, seed.format, random.Random(turn))
            seed.path.write_bytes(data)


# The parent


def hunt(first: int, count: int) -> tuple[list[str], dict[str, list[float]]]:
    """Run workers until all images are tried; return findings, and (time, parts) by format."""
    findings: list[str] = []
    figures: dict[str, list[float]] = {}
    at, end = first, first + count
    while at < end:
        last, lines, code = _one_worker(at, end - at)
        findings += [line[2:] for line in lines if line.startswith("! ")]
        for line in lines:
            if line.startswith("= "):
                name, spent, done = line[2:].split()
                tried = figures.setdefault(name, [0, 0, 0])
                tried[0] += 1
                tried[1] = max(tried[1], float(spent))
                tried[2] += float(done)
        if "# done" in lines:
            break
        if last is None or code == 1:
            raise RuntimeError(f"the worker ended with {code} at image {last}")
        why = "over a second of CPU time" if code == -signal.SIGPROF else f"ended by {code}"
        findings.append(f"{last}: {why}")
        at = last + 1
    return findings, figures


def _one_worker(first: int, count: int) -> tuple[int | None, list[str], int]:
    place = Path(tempfile.mkdtemp(prefix="wirt-fuzz-"))
    (place / "seeds").mkdir()
    command = [sys.executable, "-m", "tests.fuzz.formats", "--work", str(place)]
    try:
        done = subprocess.run(
            [*command, "--first", str(first), str(count)],
            stdout=subprocess.PIPE, text=True, errors="backslashreplace", check=False,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
    finally:
        shutil.rmtree(place)
    lines = done.stdout.splitlines()
    numbers = [int(line[2:]) for line in lines if line.startswith("# ") and line != "# done"]
    return numbers[-1] if numbers else None, lines, done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--work", metavar="DIRECTORY", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(Path(given.work), given.first, given.count)
        return 0
    findings, figures = hunt(given.first, given.count)
    for name, (count, slowest, parts) in sorted(figures.items()):
        print(f"{name:<12} {count:>7.0f} images, slowest {slowest:.2f} s, parts done {parts:.0f}")
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"{given.count} images, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
