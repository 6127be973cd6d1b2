"""The directory that Parallels Desktop and Virtuozzo call a disk (``.hdd``).

Specification: ``docs/interop/prl-xml.rst`` of QEMU. Offsets count sectors of 512 bytes.

::

    DiskDescriptor.xml
        Parallels_disk_image
            Disk_Parameters: Disk_size …
            StorageData: Storage: Start, End, Blocksize, and of each snapshot
                Image: GUID, Type (Compressed: a Parallels image; Plain: the bytes), File
            Snapshots: TopGUID (if not the usual one), Shot: GUID, ParentGUID (zeros: none)

A storage is a part of the disk. In each, the image of the top snapshot takes all writes; what it
does not hold is its parent's. Names of files are relative to the directory, or absolute where it
once was; then they are looked for in the directory too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from xml.parsers import expat

import msgspec
from msgspec.structs import replace

from wirt.errors import CorruptImage, ImageIoError, NotThisFormat, OutOfBounds, UnsupportedImage
from wirt.image.base import (
    Extent,
    Image,
    ImageInfo,
    OpenOptions,
    Related,
    Storage,
    WritableImage,
)
from wirt.image.extents import chain_extents
from wirt.image.formats.mapped import SECTOR
from wirt.image.formats.raw import RawImage

DESCRIPTOR = "DiskDescriptor.xml"
_ROOT = "Parallels_disk_image"
_TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
_NONE = "{00000000-0000-0000-0000-000000000000}"
_MOST_XML = 1 << 20
_MOST_NODES = 20_000
_MOST_DEPTH = 32
_MOST_STORAGES = 4096

OpenParallels = Callable[[Storage, OpenOptions], Image]


def is_bundle(storage: Storage) -> bool:
    return f"<{_ROOT}".encode() in storage.pread(0, 1024)


# The descriptor


class _Node(msgspec.Struct):
    tag: str
    text: str = ""
    children: list[_Node] = msgspec.field(default_factory=list)

    def all(self, tag: str) -> list[_Node]:
        return [child for child in self.children if child.tag == tag]

    def one(self, tag: str) -> _Node:
        found = self.all(tag)
        if len(found) != 1:
            raise CorruptImage(
                f"the disk descriptor has {len(found)} times {tag} in {self.tag[:20]}"
            )
        return found[0]

    def sector(self, tag: str) -> int:
        text = self.one(tag).text.strip()
        if not text.isascii() or not text.isdecimal() or len(text) > 15:
            raise CorruptImage(f"{tag} in the disk descriptor is no number")
        return int(text)

    def word(self, tag: str) -> str:
        return self.one(tag).text.strip()


class _Reader:
    """Builds the tree; nothing is expanded, and it stays small."""

    def __init__(self) -> None:
        self.root = _Node("")
        self._open = [self.root]
        self._count = 0
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._entity
        self.parse = parser.Parse

    def _start(self, tag: str, _: object) -> None:
        self._count += 1
        if self._count > _MOST_NODES or len(self._open) > _MOST_DEPTH:
            raise OutOfBounds("the disk descriptor is too large")
        node = _Node(tag)
        self._open[-1].children.append(node)
        self._open.append(node)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        self._open[-1].text += text

    def _entity(self, *_: object) -> None:
        raise CorruptImage("a disk descriptor declares no entities")


def _parse(raw: bytes) -> _Node:
    reader = _Reader()
    try:
        reader.parse(raw, True)
    except (expat.ExpatError, ValueError) as error:
        raise CorruptImage(f"the disk descriptor is broken: {error}") from error
    return reader.root.one(_ROOT)


def _chain(root: _Node, budget_depth: int) -> list[str]:
    """Return the snapshots from the top down."""
    snapshots = root.all("Snapshots")
    parents = {
        shot.word("GUID").lower(): shot.word("ParentGUID").lower()
        for node in snapshots
        for shot in node.all("Shot")
    }
    named = [top.text.strip().lower() for node in snapshots for top in node.all("TopGUID")]
    guid = named[0] if named else _TOP
    chain = [guid]
    while (guid := parents.get(guid, _NONE)) != _NONE:
        if guid in chain:
            raise CorruptImage("the snapshots of the disk descriptor go in circles")
        chain.append(guid)
        if len(chain) > budget_depth:
            raise OutOfBounds(f"the disk has more than {budget_depth} snapshots")
    return chain


# The images


class _Part(msgspec.Struct, frozen=True):
    """One storage: where on the disk it begins and ends, in bytes."""

    start: int
    end: int
    image: Image


class BundleImage(WritableImage):
    format_name = "parallels"

    def __init__(self, storage: Storage, options: OpenOptions, open_one: OpenParallels) -> None:
        self.storage = storage
        self._options = options
        self._open_one = open_one
        if storage.size() > _MOST_XML:
            raise NotThisFormat("this is no disk descriptor")
        root = _parse(storage.pread(0, _MOST_XML))
        self._guids = _chain(root, options.budget.chain_depth)
        self._shots = sum(len(node.all("Shot")) for node in root.all("Snapshots"))
        self._parts: list[_Part] = []
        try:
            self._open_storages(root.one("StorageData").all("Storage"))
        except BaseException:
            self._close_parts()
            raise
        self._starts = [part.start for part in self._parts]
        self.virtual_size = self._parts[-1].end

    def _open_storages(self, storages: list[_Node]) -> None:
        if not 0 < len(storages) <= _MOST_STORAGES:
            raise CorruptImage(f"a disk cannot have {len(storages)} storages")
        for node in sorted(storages, key=lambda node: node.sector("Start")):
            start, end = node.sector("Start") * SECTOR, node.sector("End") * SECTOR
            if start != (self._parts[-1].end if self._parts else 0) or end <= start:
                raise CorruptImage("the storages do not lie one behind the other")
            image = self._open_chain(node)
            self._parts.append(_Part(start, end, image))
            if image.virtual_size < end - start:
                raise CorruptImage("an image is shorter than its storage", path=image.storage.name)

    def _open_chain(self, node: _Node) -> Image:
        """Open the top image of a storage, and below it those of the snapshots."""
        found = {image.word("GUID").lower(): image for image in node.all("Image")}
        if any(guid not in found for guid in self._guids):
            raise CorruptImage("a snapshot has no image in one of the storages")
        top = self._open_top(found[self._guids[0]])
        try:
            upper = top
            for guid in self._guids[1:]:
                upper.backing = self._related.image(
                    _names(found[guid]), format=_format(found[guid])
                )
                upper = upper.backing
        except BaseException:
            top.close()
            raise
        return top

    @property
    def _related(self) -> Related:
        if self._options.related is None:
            raise UnsupportedImage("the disk needs its other files")
        return self._options.related

    def _open_top(self, node: _Node) -> Image:
        storage = self._first_there(_names(node))
        try:
            if _format(node) == "raw":
                return RawImage(storage)
            return self._open_one(storage, self._options)
        except BaseException:
            storage.close()
            raise

    def _first_there(self, names: list[str]) -> Storage:
        for name in names[:-1]:
            try:
                return self._related.storage(name, role="extent")
            except ImageIoError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        return self._related.storage(names[-1], role="extent")

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[_Part, int, int]]:
        """Yield (part, offset inside it, length)."""
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise OutOfBounds(f"{length} bytes at {offset:#x} are not inside the disk")
        while length:
            part = self._parts[bisect_right(self._starts, offset) - 1]
            step = min(length, part.end - offset)
            yield part, offset - part.start, step
            offset += step
            length -= step

    def pread(self, offset: int, length: int) -> bytes:
        pieces = self._pieces(offset, length)
        return b"".join(part.image.pread(inside, step) for part, inside, step in pieces)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for part, inside, step in self._pieces(offset, length):
            for extent in chain_extents(part.image, inside, step):
                yield replace(extent, offset=extent.offset + part.start, depth=0)

    def _writable(self, part: _Part) -> WritableImage:
        if not self._options.writable or not isinstance(part.image, WritableImage):
            raise ImageIoError("the image is open for reading only", path=self.storage.name)
        return part.image

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for part, inside, step in self._pieces(offset, len(view)):
            self._writable(part).pwrite(inside, view[:step])
            view = view[step:]

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for part, inside, step in self._pieces(offset, length):
            self._writable(part).write_zeroes(inside, step, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        for part, inside, step in self._pieces(offset, length):
            self._writable(part).discard(inside, step)

    def flush(self) -> None:
        for part in self._parts:
            self._writable(part).flush()

    def info(self) -> ImageInfo:
        return ImageInfo(
            "parallels",
            self.virtual_size,
            sum(_allocated(part.image) for part in self._parts),
            self._parts[0].image.info().cluster_size,
            dirty=any(part.image.info().dirty for part in self._parts),
            specific={"storages": len(self._parts), "snapshots": max(0, self._shots - 1)},
        )

    def _close_parts(self) -> None:
        for part in self._parts:
            part.image.close()

    def close(self) -> None:
        try:
            self._close_parts()
        finally:
            super().close()


def _names(node: _Node) -> list[str]:
    name = node.word("File")
    if not name or "\0" in name:
        raise CorruptImage("an image of the disk descriptor has no file")
    return [name, name.rsplit("/", 1)[-1]] if name.startswith("/") else [name]


def _format(node: _Node) -> str:
    kind = node.word("Type")
    known = {"Compressed": "parallels", "Plain": "raw"}
    if kind not in known:
        raise UnsupportedImage(f"images of type {kind[:20]!r} are not supported")
    return known[kind]


def _allocated(image: Image) -> int:
    total, layer = 0, image
    while True:
        total += layer.info().allocated_size
        if layer.backing is None:
            return total
        layer = layer.backing
