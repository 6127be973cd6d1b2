"""Images to begin with: of every format that can be made, and samples that others made."""

import lzma
import plistlib
import random
from dataclasses import dataclass
from pathlib import Path

from tests.image.formats import udif
from wirt.errors import WirtError
from wirt.image.base import (
    AllowLocalFiles,
    Format,
    HasBitmaps,
    HasSnapshots,
    NamedFormat,
    WritableImage,
)
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.probe import claims
from wirt.image.registry import FORMATS
from wirt.image.storage.file import FileStorage

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "images"
SIZE = 2 << 20
_LARGEST = 4 << 20
SECRET = "correct horse"
SHAPES = {
    "qcow2": (
        {"cluster_size": "512"},
        {"cluster_size": "16384", "extended_l2": "on", "compression_type": "zstd"},
        {"compat": "0.10", "cluster_size": "4096"},
    ),
    "vmdk": (
        {},
        {"subformat": "monolithicFlat"},
        {"subformat": "twoGbMaxExtentSparse"},
        {"subformat": "vmfsSparse"},
    ),
    "vpc": ({}, {"subformat": "fixed"}),
    "vhdx": ({"log_size": "1M", "block_size": "1M"},),
    "luks": ({"encrypt.secret": SECRET, "iter-time": "10"},),
}
"""Creation options that lead to other code; a format without any is made by its defaults."""


@dataclass(frozen=True)
class Seed:
    """One sound image: the file that is damaged, and its format."""

    path: Path
    format: str


def file_formats() -> list[Format]:
    return [one for one in FORMATS if not isinstance(one, NamedFormat)]


def make_seeds(directory: Path) -> list[Seed]:
    """Make all seeds below ``directory``. Every format is tried on something."""
    seeds = [*_created(directory), *_samples(directory), *_written_by_tests(directory)]
    known = {seed.format for seed in seeds}
    (directory / "strange").mkdir()
    strange = directory / "strange" / "disk"
    strange.write_bytes(random.Random(1).randbytes(65536))
    seeds += [Seed(strange, one.name) for one in file_formats() if one.name not in known]
    return seeds


def _created(directory: Path):
    for known in file_formats():
        for number, options in enumerate(SHAPES.get(known.name, ({},))):
            place = directory / f"{known.name}-{number}"
            place.mkdir()
            path = place / "disk"
            try:
                create_image(str(path), known.name, SIZE, options=options)
                _fill(path, known.name)
            except WirtError:
                continue  # read only, or made of more than a size
            if path.stat().st_size <= 4 * _LARGEST:
                yield Seed(path, known.name)
            # An extent opens by itself too, and holds what the descriptor does not.
            for extent in place.glob("disk-delta.vmdk"):
                yield Seed(extent, known.name)


def _fill(path: Path, name: str) -> None:
    dice = random.Random(name)
    secret = SECRET.encode() if name == "luks" else None
    gate = AllowLocalFiles()
    with open_image(str(path), format=name, writable=True, gate=gate, secret=secret) as image:
        if isinstance(image, WritableImage):
            for _ in range(6):
                image.pwrite(dice.randrange(SIZE - 5000), dice.randbytes(5000))
            image.write_zeroes(65536, 65536)
            image.flush()
        if isinstance(image, HasSnapshots):
            image.snapshot_create("one")
        if isinstance(image, HasBitmaps) and image.can_have_bitmaps:
            image.bitmap_add("bitmap")


def _written_by_tests(directory: Path):
    """Formats that wirt does not make, and files that only mean something beside others."""
    data = random.Random(2).randbytes(65536) + bytes(65536) + b"text" * 16384
    chunks = [(kind, 24) for kind in ("zlib", "adc", "plain", "bzip2", "zero", "lzfse", "lzma")]
    files = {
        "dmg": udif.udif(data, chunks),
        "dmg-resources": udif.udif(data, chunks, resources=True),
        "dmg-locked": udif.encrypted_2(data, SECRET.encode()),
        "dmg-locked-1": udif.encrypted_1(data, SECRET.encode()),
        "sparseimage": udif.sparse_image(data, [3, 0, 2, 9, 8]),
    }
    for name, content in files.items():
        yield Seed(_alone(directory, name, content), name.split("-")[0])
    plist = {"band-size": 8192, "size": len(data), "bundle-backingstore-version": 1,
             "diskimage-bundle-type": "com.apple.diskimage.sparsebundle"}  # fmt: skip
    path = _alone(directory, "sparsebundle", plistlib.dumps(plist), "Info.plist")
    for name in ("token", "bands/0", "bands/a"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(b"" if name == "token" else data[:8192])
    yield Seed(path, "sparsebundle")
    path = _alone(directory, "concat", data, "disk1")
    (path.parent / "disk2").write_bytes(data[:512])
    yield Seed(path, "bochs-concat")
    path = _alone(directory, "cloop", b"")
    create_image(str(path), "cloop", SIZE, options={"block_size": "16k"})
    yield Seed(path, "cloop")
    for kind in ("sparse", "growing"):
        path = _alone(directory, f"bochs-{kind}", b"")
        create_image(str(path), "bochs", SIZE, options={"subformat": kind})
        yield Seed(path, "bochs")
    path = _alone(directory, "overlay", b"")
    (path.parent / "base").write_bytes(data)
    create_image(str(path), "cow", 0, backing="base", backing_format="raw")
    yield Seed(path, "cow")


def _alone(directory: Path, folder: str, content: bytes, name: str = "disk") -> Path:
    """Write a file into a directory of its own: it may open what lies beside it."""
    place = directory / f"written-{folder}"
    place.mkdir()
    (place / name).write_bytes(content)
    return place / name


def _samples(directory: Path):
    for packed in sorted(SAMPLES.glob("*.xz")) if SAMPLES.is_dir() else ():
        with lzma.open(packed) as source:
            data = source.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            continue
        path = directory / f"sample-{packed.stem}" / "disk"
        path.parent.mkdir()
        path.write_bytes(data)
        with FileStorage(str(path)) as storage:
            names = claims(storage)
        if len(names) == 1:
            yield Seed(path, names[0])
