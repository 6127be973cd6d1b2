"""A directory as a disk; writes go to a temporary file until they are asked back."""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict

from wirt.errors import ImageIoError
from wirt.image.base import Extent, ExtentKind, ImageInfo, Storage, WritableImage
from wirt.image.formats.mapped import MappedImage
from wirt.image.formats.vvfat.layout import Layout, Piece
from wirt.image.formats.vvfat.tree import Node, Tree
from wirt.image.storage.file import FileStorage
from wirt.image.storage.scratch import Scratch

_GRANULE = 4096
_OPEN_FILES = 32


class _Nowhere(Storage):
    """A directory is no file: there are no bytes to ask for by position."""

    read_only = True

    def __init__(self, name: str) -> None:
        self.name = name

    def size(self) -> int:
        return 0

    def pread(self, offset: int, length: int) -> bytes:
        return b""

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise ImageIoError("a directory is not written by position", path=self.name)

    def truncate(self, size: int) -> None:
        raise ImageIoError("a directory has no size to change", path=self.name)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class VvfatImage(MappedImage, WritableImage):
    """The disk. The files are read when the guest reads them, and never changed here."""

    format_name = "vvfat"

    def __init__(self, tree: Tree, layout: Layout, *, writable: bool) -> None:
        self.tree = tree
        self.layout = layout
        self.virtual_size = layout.size
        self.storage = _Nowhere(tree.directory)
        self._starts = [piece.offset for piece in layout.pieces]
        self._files: OrderedDict[str, FileStorage] = OrderedDict()
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._writable = writable
        self._scratch: Scratch | None = None
        self._written: set[int] = set()

    @property
    def changed(self) -> bool:
        """True if the guest has written since the disk was opened."""
        return bool(self._written)

    def was_written(self, offset: int, length: int) -> bool:
        """True if any byte of the range was."""
        granules = range(offset // _GRANULE, -(-(offset + length) // _GRANULE))
        return not self._written.isdisjoint(granules)

    def _run(self, offset: int, limit: int) -> Extent:
        if not self._written:
            return self._original_run(offset, limit)
        granule = offset // _GRANULE
        written = granule in self._written
        end = granule + 1
        while end * _GRANULE < offset + limit and (end in self._written) == written:
            end += 1
        limit = min(limit, end * _GRANULE - offset)
        if not written:
            return self._original_run(offset, limit)
        return Extent(offset, limit, ExtentKind.DATA, 0, self._scratch, offset)

    def _original_run(self, offset: int, limit: int) -> Extent:
        index = bisect.bisect_right(self._starts, offset) - 1
        piece = self.layout.pieces[index]
        end = piece.offset + piece.length
        if offset < end:
            return Extent(offset, min(limit, end - offset), ExtentKind.DATA)
        following = self._starts[index + 1] if index + 1 < len(self._starts) else self.virtual_size
        return Extent(offset, min(limit, following - offset), ExtentKind.ZERO)

    def _read_packed(self, offset: int, length: int) -> bytes:
        index = bisect.bisect_right(self._starts, offset) - 1
        parts = []
        while length:
            piece = self.layout.pieces[index]
            inside = offset - piece.offset
            step = min(length, piece.length - inside)
            parts.append(self._piece_bytes(piece, inside, step))
            offset += step
            length -= step
            index += 1
        return b"".join(parts)

    def _piece_bytes(self, piece: Piece, inside: int, length: int) -> bytes:
        if piece.node is None:
            return piece.content[inside : inside + length]
        data = self.read_file(piece.node, inside, length)
        if len(data) != length:
            path = os.path.join(self.tree.directory, piece.node.path)
            raise ImageIoError("the file became shorter while it was shown", path=path)
        return data

    def read_file(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes of the host's file, whatever the guest has written."""
        with self._lock:
            file = self._files.pop(node.path, None)
            if file is None:
                file = self._open(node)
            self._files[node.path] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            return file.pread(offset, length)

    def _open(self, node: Node) -> FileStorage:
        path = os.path.join(self.tree.directory, node.path)
        file = FileStorage(path, follow_link=False)
        info = os.fstat(file.fileno() or 0)
        if (info.st_mtime, info.st_size) != (node.modified, node.size):
            file.close()
            raise ImageIoError(
                "the file changed while it was shown", path=path, hint="open the directory anew"
            )
        return file

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        if not self._writable:
            raise ImageIoError("the directory is shown read-only", hint="fat:rw:DIRECTORY")
        if not view:
            return
        with self._write_lock:
            scratch = self._room()
            for granule in {offset // _GRANULE, (offset + len(view) - 1) // _GRANULE}:
                self._fill(scratch, granule)
            scratch.pwrite(offset, view)
            end = -(-(offset + len(view)) // _GRANULE)
            self._written.update(range(offset // _GRANULE, end))

    def _room(self) -> Scratch:
        if self._scratch is None:
            self._scratch = Scratch()
            self._scratch.truncate(self.virtual_size)
        return self._scratch

    def _fill(self, scratch: Scratch, granule: int) -> None:
        """Copy what a write covers only in part."""
        if granule not in self._written:
            start = granule * _GRANULE
            length = min(_GRANULE, self.virtual_size - start)
            scratch.pwrite(start, self.pread(start, length))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        while length:
            step = min(length, 1 << 20)
            self.pwrite(offset, bytes(step))
            offset += step
            length -= step

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        """Nothing survives this process but what ``apply`` brings back."""

    def info(self) -> ImageInfo:
        nodes = list(self.tree.top.walk())
        specific = {
            "fat-type": self.layout.volume.bits,
            "files": sum(not node.is_directory for node in nodes),
            "left-out": list(self.tree.left_out),
        }
        stored = sum(node.size for node in nodes)
        cluster = self.layout.volume.cluster_bytes
        return ImageInfo("vvfat", self.virtual_size, stored, cluster, specific=specific)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()
        if self._scratch is not None:
            self._scratch.close()
