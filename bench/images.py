"""The image engine against qemu-img, on the same file in the same run.

The file is a 3 GiB ext4 made from this system's own files (``WIRT_BENCH_SIZE=512M`` for a
look, ``WIRT_BENCH_ROUNDS=1``; the ratios that we promise are those of the whole size). Ours
times itself in a process of its own; qemu-img is timed as a process, which costs it five
milliseconds. Ours ends with the new file on disk (fsync); qemu-img's default does not, so for
wall times its peer is ``-t writeback``, which does.

Memory that was never touched is slow on a virtual machine, by seconds that come and go. A new
file finds it warm, which does not last where free memory goes back to the host at once. So the
plain conversions, and those of compressed images, are measured into a file that is there
already, the same for both, whose pages stay in the cache from round to round: what both would
pay alike for new pages is not in these rows. Each side fills that file from empty once, and it
is compared with the source.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pairs import Row, Sample, compare, run
from wirt.units import parse_size

TITLE = "Image engine against qemu-img (ours / theirs; below 1 is faster)"
_SIZE = parse_size(os.environ.get("WIRT_BENCH_SIZE", "3G"))
_ROUNDS = int(os.environ.get("WIRT_BENCH_ROUNDS", "5"))
_SYSTEM = ("/usr/share", "/usr/lib")
_FILLED = 0.7
_WARM = _SIZE + (512 << 20)


def rows() -> list[Row]:
    root = Path(tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp"))
    try:
        source = _file_system(root)
        return [
            *_conversions(root, source),
            *_operations(root, source),
            *_large_metadata(root),
            *_reflinks(root, source),
        ]
    finally:
        shutil.rmtree(root)


def _file_system(root: Path) -> Path:
    """Make an ext4 of real files; hard links cost nothing where the file system is the same."""
    tree, source = root / "tree", root / "source.raw"
    tree.mkdir()
    room = int(_SIZE * _FILLED)
    for number, file in enumerate(_system_files()):
        room -= file.stat().st_size + 4096
        if room < 0:
            break
        place = tree / str(number % 256)
        place.mkdir(exist_ok=True)
        try:
            os.link(file, place / str(number))
        except OSError:
            shutil.copyfile(file, place / str(number))
    make = ["mke2fs", "-q", "-t", "ext4", "-d", tree, source, f"{_SIZE >> 10}k"]
    subprocess.run(make, check=True, capture_output=True)
    shutil.rmtree(tree)
    return source


def _system_files() -> list[Path]:
    """Return the system's files, mixed: a small disk then holds what a large one holds."""
    found = []
    for top in _SYSTEM:
        for directory, _, names in os.walk(top):
            paths = [Path(directory, name) for name in names]
            found += [path for path in paths if path.is_file() and not path.is_symlink()]
    found.sort()
    random.Random(1).shuffle(found)
    return found


def _warm() -> None:
    mmap.mmap(-1, _WARM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def _nothing() -> None:
    """What is needed is in memory, and stays."""


def _ours(*words: str | Path, before: Callable[[], None] = _warm) -> Callable[[], Sample]:
    def measure() -> Sample:
        before()
        done = subprocess.run(
            [sys.executable, "-m", "bench.image_operation", *map(str, words)],
            check=True,
            capture_output=True,
        )
        return Sample(**json.loads(done.stdout))

    return measure


def _theirs(*words: str | Path, before: Callable[[], None] = _warm) -> Callable[[], Sample]:
    def measure() -> Sample:
        before()
        return run(["qemu-img", *map(str, words)])

    return measure


def _converted(
    what: str, source: Path, target: Path, name: str, settings: dict[str, object], *words: str,
    rounds: int = _ROUNDS, target_ratio: str = "",
) -> Row:  # fmt: skip
    """Compare one conversion; the sizes of both results go into the name of the row."""

    def before() -> None:
        target.unlink(missing_ok=True)
        _warm()

    ours = _ours("convert", source, target, name, json.dumps(settings), before=before)
    command = ("convert", "-t", "writeback", *words, "-O", name, source, target)
    theirs = _theirs(*command, before=before)
    sizes: list[int] = []

    def sized(measure: Callable[[], Sample]) -> Callable[[], Sample]:
        def wrapped() -> Sample:
            sample = measure()
            sizes.append(os.stat(target).st_blocks)
            return sample

        return wrapped

    row = compare(
        what, sized(ours), " ".join(["qemu-img convert", *words]), sized(theirs),
        rounds=rounds, target=target_ratio, warm_up=1 if rounds > 1 else 0,
    )  # fmt: skip
    ratio = sizes[-2] / sizes[-1]
    return Row(**{**vars(row), "what": f"{what} (size x{ratio:.3f})"})


def _overwritten(
    what: str, source: Path, plain: Path, target: Path, name: str, target_ratio: str
) -> Row:
    """Compare conversions of ``source``, which holds ``plain``, into a file that stays."""
    settings = {"into_existing": True, "target_is_zero": True}
    command = ("convert", "-n", "--target-is-zero", "-t", "writeback", "-O", name, source, target)
    ours = _ours("convert", source, target, name, json.dumps(settings), before=_nothing)
    theirs = _theirs(*command, before=_nothing)
    for measure in (ours, theirs):
        size = str(plain.stat().st_size)
        subprocess.run(["qemu-img", "create", "-q", "-f", name, target, size], check=True)
        measure()
        compared = ["qemu-img", "compare", "-q", "-f", "raw", "-F", name, plain, target]
        subprocess.run(compared, check=True)
    return compare(
        f"{what}, into a file that stays", ours, "qemu-img convert -n --target-is-zero", theirs,
        rounds=_ROUNDS, target=target_ratio,
    )  # fmt: skip


def _conversions(root: Path, source: Path) -> Iterator[Row]:
    target = root / "target"
    zstd = {"compressed": True, "options": {"compression_type": "zstd"}}
    packed = ("-c", "-o", "compression_type=zstd")
    yield _overwritten("raw to raw", source, source, target, "raw", "wall <= 1")
    yield _overwritten("raw to qcow2", source, source, target, "qcow2", "wall <= 1")
    yield _converted("raw to qcow2", source, target, "qcow2", {}, target_ratio="reported")
    plain = root / "plain.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, plain], check=True)
    yield _overwritten("qcow2 to raw", plain, source, target, "raw", "wall <= 1")
    plain.unlink()
    yield _converted(
        "to zlib", source, target, "qcow2", {"compressed": True}, "-c",
        rounds=1, target_ratio="CPU <= 0.25",
    )  # fmt: skip
    yield _converted(
        "to zlib, fast", source, target, "qcow2", {"compressed": True, "level": "fast"}, "-c",
        rounds=1, target_ratio="CPU <= 0.14",
    )  # fmt: skip
    yield _converted(
        "to zstd", source, target, "qcow2", zstd, *packed, rounds=3, target_ratio="CPU <= 0.67"
    )
    for name in ("zlib", "zstd"):
        small = root / f"{name}.qcow2"
        _ours("convert", source, small, "qcow2", json.dumps(_settings(name)))()
        ratio = "CPU <= 0.55" if name == "zlib" else "reported"  # zstd itself is most of it
        yield _overwritten(f"{name} to raw", small, source, target, "raw", ratio)
        small.unlink()
    target.unlink()


def _settings(name: str) -> dict[str, object]:
    return {"compressed": True, "options": {"compression_type": name}}


def _operations(root: Path, source: Path) -> Iterator[Row]:
    image = root / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, image], check=True)
    yield compare(
        "compare raw, qcow2", _ours("compare", source, image), "qemu-img compare",
        _theirs("compare", source, image), rounds=_ROUNDS, target="reported",
    )  # fmt: skip
    yield compare(
        "map", _ours("map", image), "qemu-img map", _theirs("map", "--output=json", image),
        rounds=_ROUNDS, target="reported",
    )  # fmt: skip
    base, overlay, kept = root / "base.raw", root / "overlay.qcow2", root / "kept.qcow2"
    base.write_bytes(b"")
    os.truncate(base, source.stat().st_size)
    command = ["convert", "-B", base.name, "-F", "raw", "-O", "qcow2", source.name, kept.name]
    subprocess.run(["qemu-img", *command], check=True, cwd=root)

    def again(measure: Callable[[], Sample]) -> Callable[[], Sample]:
        def wrapped() -> Sample:
            shutil.copy(kept, overlay)
            with base.open("w") as file:
                file.truncate(source.stat().st_size)
            return measure()

        return wrapped

    yield compare(
        "commit", again(_ours("commit", overlay)), "qemu-img commit",
        again(_theirs("commit", overlay)), rounds=3, target="reported",
    )  # fmt: skip
    yield compare(
        "rebase onto the same bytes", again(_ours("rebase", overlay, source.name)),
        "qemu-img rebase", again(_theirs("rebase", "-F", "raw", "-b", source, overlay)),
        rounds=3, target="reported",
    )  # fmt: skip
    for file in (image, base, overlay, kept):
        file.unlink()


def _large_metadata(root: Path) -> Iterator[Row]:
    image = root / "metadata.qcow2"
    options = ("-f", "qcow2", "-o", "preallocation=metadata", str(image), "512G")
    subprocess.run(["qemu-img", "create", *options], check=True, capture_output=True)
    for name in ("check", "map"):
        yield compare(
            f"{name} of 512 GiB of metadata", _ours(name, image), f"qemu-img {name}",
            _theirs(name, image), rounds=_ROUNDS,
            target="wall <= 0.67" if name == "check" else "reported",
        )  # fmt: skip
    image.unlink()


def _reflinks(root: Path, source: Path) -> Iterator[Row]:
    with _xfs(root) as place:
        if place is None:
            print("no rows for reflinks: an XFS image cannot be mounted here")
            return
        there, target = place / "source.raw", place / "target"
        subprocess.run(["cp", "--sparse=always", source, there], check=True)
        for what, origin, name in (
            ("raw to qcow2, XFS", there, "qcow2"),
            ("qcow2 to raw, XFS", place / "plain.qcow2", "raw"),
        ):
            if name == "raw":
                subprocess.run(["qemu-img", "convert", "-O", "qcow2", there, origin], check=True)
            yield _converted(what, origin, target, name, {}, target_ratio="wall <= 0.2")


@contextmanager
def _xfs(root: Path) -> Iterator[Path | None]:
    """Mount an XFS with reflinks from a file, where we may."""
    image, place = root / "xfs", root / "mounted"
    place.mkdir()
    image.touch()
    os.truncate(image, 12 << 30)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
