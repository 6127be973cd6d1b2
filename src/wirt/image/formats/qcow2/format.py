"""The entry of qcow2 in the registry of formats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from wirt.errors import ImageIoError
from wirt.image.base import Format, OpenOptions, Storage
from wirt.image.formats.qcow2.header import MAGIC, Header
from wirt.image.formats.qcow2.image import Qcow2Image
from wirt.image.formats.qcow2.volume import Volume


class Qcow2Format(Format):
    name = "qcow2"
    suffixes = (".qcow2", ".qcow")
    images = (Qcow2Image,)
    has_backing = True
    has_compression = True

    def probe(self, storage: Storage) -> bool:
        try:
            head = storage.pread(0, 8)
        except ImageIoError:
            return False
        return head[:4] == MAGIC and head[4:] in {b"\0\0\0\2", b"\0\0\0\3"}

    def open(self, storage: Storage, options: OpenOptions) -> Qcow2Image:
        """Open the file alone: backing image and data file are attached by the caller."""
        header = Header.parse(storage)
        return Qcow2Image(Volume(storage, header, options), options)

    def companions(self, path: str, size: int, options: Mapping[str, str]) -> Sequence[str]:
        name = options.get("data_file")
        return () if name is None else (os.path.join(os.path.dirname(path), name),)

    def create(self, storage: Storage, size: int, options: Mapping[str, str]) -> None:
        """Create the image alone; ``encrypt.secret`` is the passphrase itself.

        An external data file is made by ``wirt.image.create``. With a data file and
        preallocation, or a raw data file, it attaches the file and calls ``preallocate``.
        """
        from wirt.image.formats.qcow2.create import CreateOptions, new_header, write_empty

        parsed = CreateOptions.parse(options)
        write_empty(storage, new_header(size, parsed))
        secret = None
        if parsed.encrypted:
            from wirt.image.formats.qcow2.crypt import encrypt_new

            secret = encrypt_new(storage, options)
        if parsed.preallocation != "off" and parsed.data_file is None:
            image = self.open(storage, OpenOptions(writable=True, secret=secret))
            image.preallocate(parsed.preallocation)


FORMAT = Qcow2Format()
