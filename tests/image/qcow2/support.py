"""What the qcow2 tests share: storages, the oracle, and the end of every write test."""

import os
import subprocess
from pathlib import Path

import pytest

from wirt.errors import ImageNoSpace
from wirt.image.base import Image, OpenOptions, Storage
from wirt.image.formats.qcow2 import FORMAT
from wirt.image.formats.qcow2.image import Qcow2Image

MIB = 1 << 20


class PlainFile(Storage):
    """A local file, without locks."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.name = str(path)
        self.read_only = read_only
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(path, flags, 0o600)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def pwrite(self, offset: int, data) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            done = os.pwrite(self._descriptor, view, offset)
            offset, view = offset + done, view[done:]

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def flush(self) -> None:
        """The tests do not pull the plug of this machine."""

    def reserve(self, offset: int, length: int) -> bool:
        os.posix_fallocate(self._descriptor, offset, length)
        return True

    def fileno(self) -> int | None:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Memory(Storage):
    """Bytes in memory, with no room past ``limit``."""

    limit = 1 << 28

    def __init__(self, data: bytes = b"", *, read_only: bool = False) -> None:
        self.name = "memory"
        self.read_only = read_only
        self.data = bytearray(data)

    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def pwrite(self, offset: int, data) -> None:
        view = memoryview(data).cast("B")
        self._want(offset + len(view))
        if offset + len(view) > len(self.data):
            self.data.extend(bytes(offset + len(view) - len(self.data)))
        self.data[offset : offset + len(view)] = view

    def _want(self, size: int) -> None:
        if size > self.limit:
            raise ImageNoSpace("no space left on device")

    def truncate(self, size: int) -> None:
        self._want(size)
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def flush(self) -> None:
        """Memory is as durable as it gets."""

    def punch_hole(self, offset: int, length: int) -> bool:
        end = min(offset + length, len(self.data))
        if end > offset:
            self.data[offset:end] = bytes(end - offset)
        return True

    def close(self) -> None:
        """Keep the bytes: a test opens them again."""


def qemu_img(*words: object) -> str:
    """Run qemu-img and return what it printed; a failure fails the test."""
    # QEMU looks for a data file's name from where it runs.
    place = next((word.parent for word in words if isinstance(word, Path)), None)
    done = subprocess.run(
        ["qemu-img", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=place,
    )
    assert done.returncode == 0, f"qemu-img {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(path: Path, *commands: str, read_only: bool = False) -> str:
    words = ["qemu-io", "-f", "qcow2", *(["-r"] if read_only else [])]
    for command in commands:
        words += ["-c", command]
    done = subprocess.run(
        [*words, str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=path.parent,
    )
    assert done.returncode == 0, f"{commands}: {done.stdout}{done.stderr}"
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


def open_image(path: Path, *, writable: bool = False, **options) -> Qcow2Image:
    """Open a qcow2 file with its data file and its backing chain."""
    storage = PlainFile(path, read_only=not writable)
    image = FORMAT.open(storage, OpenOptions(writable=writable, **options))
    if image.data_file_name:
        image.attach_data_file(
            PlainFile(path.parent / image.data_file_name, read_only=not writable)
        )
    if image.backing_name:
        image.backing = open_any(path.parent / image.backing_name)
    return image


def open_any(path: Path) -> Image:
    with path.open("rb") as file:
        if file.read(4) == b"QFI\xfb":
            return open_image(path)
    return RawImage(path)


class RawImage(Image):
    format_name = "raw"

    def __init__(self, path: Path) -> None:
        self.storage = PlainFile(path, read_only=True)
        self.virtual_size = self.storage.size()

    def pread(self, offset, length):
        return self.storage.pread(offset, length)

    def extents(self, offset, length):
        raise NotImplementedError

    def info(self):
        raise NotImplementedError


def create(path: Path, size: int, **options: str) -> Path:
    """Create an image with our own code; its data file too."""
    if "data_file" in options:
        with PlainFile(path.parent / options["data_file"]) as data:
            data.truncate(size)
    with PlainFile(path) as storage:
        FORMAT.create(storage, size, options)
    return path


def assert_disk(path: Path, model: bytes | bytearray, tmp_path: Path) -> None:
    """The end of every write test: model, both checks, and the oracle's reading."""
    with open_image(path) as image:
        assert image.virtual_size == len(model)
        found = image.pread(0, len(model))
        if found != model:
            first = next(i for i, (a, b) in enumerate(zip(found, model, strict=True)) if a != b)
            pytest.fail(f"the disk differs from the model at {first:#x}")
        result = image.check()
        assert (result.corruptions, result.leaks) == (0, 0), result.messages
    qemu_img("check", "-f", "qcow2", path)
    raw = tmp_path / "model.raw"
    raw.write_bytes(model)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)
