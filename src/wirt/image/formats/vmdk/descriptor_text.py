"""The descriptor of an open disk, where it lies: in a file of its own, or in the sparse extent."""

from __future__ import annotations

import os
from contextlib import suppress

from msgspec.structs import replace

from wirt.errors import CorruptImage, ImageError, UnsupportedImage, UsageError
from wirt.image.base import Storage
from wirt.image.formats.mapped import SECTOR, read_exactly
from wirt.image.formats.vmdk.descriptor import (
    MAX_DESCRIPTOR,
    Descriptor,
    parse_descriptor,
    replaced_cid,
)
from wirt.image.formats.vmdk.sparse import COWD, KDMV, SparseExtent, SparseHeader
from wirt.image.locks import WRITER, lock
from wirt.image.replacement import sync_directory
from wirt.image.storage.file import FileStorage

_NEW = ".new"


class DescriptorText:
    """The text and what it says; empty for an extent that is only a part of a disk.

    ``storage`` is the disk's first file. Where the descriptor is that file, changing the text
    puts a new file in its place: ``storage`` is that one then, and the old one is closed.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._place, self.text = _find(storage)
        self.parsed = _parsed(self.text)

    def renew_cid(self) -> None:
        """Give the disk a new CID, so that its children do not fit any more."""
        text = replaced_cid(self.text, int.from_bytes(os.urandom(4)) % 0xFFFFFFFE)
        self.storage.pwrite(self._place, text)
        self._remember(text)

    def replace(
        self, text: bytes, sparse: SparseExtent | None, header: SparseHeader | None = None
    ) -> None:
        """Let the descriptor be ``text`` (and the header of ``sparse`` be ``header``), at once."""
        if self._place > 0:
            self._replace_embedded(text, sparse, header)
        elif self.storage.fileno() is None:
            self.storage.truncate(0)
            self.storage.pwrite(0, text)
        else:
            self._replace_file(text)
        self.storage.flush()
        self._remember(text)

    def _remember(self, text: bytes) -> None:
        self.text, self.parsed = text, _parsed(text)

    def _replace_embedded(
        self, text: bytes, sparse: SparseExtent | None, header: SparseHeader | None
    ) -> None:
        """The header switches to a copy behind everything until the descriptor is rewritten."""
        if sparse is None:
            raise CorruptImage("a sparse extent is missing")
        header = header or sparse.header
        room = header.descriptor_sectors * SECTOR
        if len(text) > room:
            raise UsageError("the descriptor has no room for so long a name")
        padded = text.ljust(room, b"\0")
        sparse.write_header(replace(header, descriptor=sparse.write_behind(padded)))
        self.storage.pwrite(self._place, padded)
        sparse.write_header(header)
        sparse.trim()

    def _replace_file(self, text: bytes) -> None:
        """Put a new file in the descriptor's place, locked as the old one is."""
        path = self.storage.name
        new = FileStorage(path + _NEW, writable=True, create=True, exclusive=True)
        try:
            lock(new.fileno() or 0, WRITER, path=path)
            new.pwrite(0, text)
            new.flush()
            os.rename(path + _NEW, path)
        except BaseException:
            new.close()
            with suppress(FileNotFoundError):
                os.unlink(path + _NEW)
            raise
        sync_directory(os.path.dirname(path) or ".")
        new.name = path
        self.storage.close()
        self.storage = new


def parent_of(storage: Storage, name: str) -> tuple[int, int]:
    """Return CID and size of the disk ``name`` beside ``storage``. Raises UnsupportedImage."""
    if '"' in name or not name.isprintable():
        raise UsageError("a VMDK cannot name such a parent", hint="rename the parent")
    with FileStorage(os.path.join(os.path.dirname(storage.name), name)) as file:
        try:
            _, text = _find(file)
            descriptor = parse_descriptor(text)
        except ImageError as error:
            raise UnsupportedImage(
                f"the parent of a VMDK must itself be a VMDK: {error.message}"
            ) from error
        if file.pread(0, 4) == KDMV:
            return descriptor.cid, SparseHeader.parse(file.pread(0, SECTOR)).capacity * SECTOR
    return descriptor.cid, sum(line.sectors for line in descriptor.extents) * SECTOR


def _find(storage: Storage) -> tuple[int, bytes]:
    """Return the descriptor's place and its bytes; none in an extent that is only a part."""
    magic = storage.pread(0, 4)
    if magic == COWD:
        return 0, b""
    if magic != KDMV:
        return 0, storage.pread(0, min(storage.size(), MAX_DESCRIPTOR))
    header = SparseHeader.parse(storage.pread(0, SECTOR))
    if not header.descriptor:
        return 0, b""
    length = header.descriptor_sectors * SECTOR
    if length > MAX_DESCRIPTOR:
        raise CorruptImage(f"a descriptor of {length} bytes")
    place = header.descriptor * SECTOR
    return place, read_exactly(storage, place, length, "the descriptor")


def _parsed(text: bytes) -> Descriptor:
    return parse_descriptor(text) if text else Descriptor({}, ())
