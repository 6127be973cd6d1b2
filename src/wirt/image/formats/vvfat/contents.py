"""What a guest made of the disk: its file system read back, every claim of it doubted."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec

from wirt.errors import CorruptImage
from wirt.image.base import Image
from wirt.image.fat.directory import Entry, parse_directory
from wirt.image.fat.volume import ENTRY, FIRST_CLUSTER, SECTOR, Volume, unpack_table
from wirt.image.formats.vvfat.tree import MOST_FILES

_DEEPEST = 100


class Found(msgspec.Struct, frozen=True):
    """A file or directory of the guest's; ``runs`` are (offset on the disk, length)."""

    path: str
    is_directory: bool
    size: int
    modified: float
    read_only: bool
    first: int
    runs: tuple[tuple[int, int], ...] = ()


class Contents:
    """Reads the volume that ``layout`` describes. Raises CorruptImage for what is not sound."""

    def __init__(self, image: Image, volume: Volume, start: int) -> None:
        self._image = image
        self._volume = volume
        self._start = start
        self._table = self._load_table()
        self._owner = bytearray(volume.clusters + FIRST_CLUSTER)

    def _load_table(self) -> array[int]:
        volume = self._volume
        boot = self._image.pread(self._start, 512)
        if (
            boot[11:13] != b"\0\2"
            or boot[13] != volume.cluster_sectors
            or boot[510:] != b"\x55\xaa"
        ):
            raise CorruptImage("the guest made another file system: nothing can be brought back")
        offset = self._start + volume.reserved * SECTOR
        data = self._image.pread(offset, volume.table_sectors * SECTOR)
        return unpack_table(volume.bits, data, volume.clusters + FIRST_CLUSTER)

    def walk(self) -> Iterator[Found]:
        """Yield all files and directories, directories before what is in them."""
        waiting: list[tuple[str, bytes, int]] = [("", self._root(), 0)]
        count = 0
        while waiting:
            path, data, depth = waiting.pop()
            if depth > _DEEPEST:
                raise CorruptImage(f"{path[:80]}…: directories are more than {_DEEPEST} deep")
            seen: set[str] = set()
            for entry in parse_directory(data):
                count += 1
                if count > MOST_FILES:
                    raise CorruptImage(f"the disk has more than {MOST_FILES} files")
                found = self._found(f"{path}/{entry.name}" if path else entry.name, entry)
                if entry.name.upper() in seen:
                    raise CorruptImage(f"{found.path} is there twice")
                seen.add(entry.name.upper())
                yield found
                if found.is_directory:
                    waiting.append((found.path, self._read(found.runs), depth + 1))

    def _root(self) -> bytes:
        volume = self._volume
        if volume.root_entries:
            offset = self._start + volume.root_start * SECTOR
            return self._image.pread(offset, volume.root_entries * ENTRY)
        return self._read(self._runs(FIRST_CLUSTER, "the root"))

    def _found(self, path: str, entry: Entry) -> Found:
        runs = self._runs(entry.first, path) if entry.first else ()
        stored = sum(length for _, length in runs)
        if entry.is_directory and not runs:
            raise CorruptImage(f"the directory {path} lies nowhere")
        if not entry.is_directory:
            if stored - self._volume.cluster_bytes >= entry.size or stored < entry.size:
                raise CorruptImage(f"{path} has {entry.size} bytes in {stored} bytes of clusters")
            runs = _cut(runs, entry.size)
        protected = bool(entry.attributes & 1)
        return Found(
            path, entry.is_directory, entry.size, entry.modified, protected, entry.first, runs
        )

    def _runs(self, first: int, path: str) -> tuple[tuple[int, int], ...]:
        """Return the places of a chain; a cluster belongs to one file only."""
        volume = self._volume
        runs: list[tuple[int, int]] = []
        cluster = first
        last_valid = volume.clusters + FIRST_CLUSTER - 1
        while cluster < (volume.end_of_chain & ~7):
            if not FIRST_CLUSTER <= cluster <= last_valid:
                raise CorruptImage(f"{path} points outside the volume")
            if self._owner[cluster]:
                raise CorruptImage(f"{path} shares clusters with another file")
            self._owner[cluster] = 1
            offset = self._start + volume.cluster_offset(cluster)
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + volume.cluster_bytes)
            else:
                runs.append((offset, volume.cluster_bytes))
            cluster = self._table[cluster]
        return tuple(runs)

    def _read(self, runs: tuple[tuple[int, int], ...]) -> bytes:
        return b"".join(self._image.pread(offset, length) for offset, length in runs)


def _cut(runs: tuple[tuple[int, int], ...], size: int) -> tuple[tuple[int, int], ...]:
    """Leave out what lies behind the end of the file."""
    out = []
    for offset, length in runs:
        if size <= 0:
            break
        out.append((offset, min(length, size)))
        size -= length
    return tuple(out)
