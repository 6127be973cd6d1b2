"""host_device: a block device of the host, byte for byte.

The same bytes as raw, with what only a device has: sectors, and an exclusive opener. A drive that
is mounted, or in use by a RAID, a volume group or swap, cannot be opened for writing.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from typing import ClassVar

from wirt.errors import ImageAccessDenied, ImageIoError, NotThisFormat
from wirt.image.base import Format, ImageInfo, OpenOptions, Storage
from wirt.image.formats.raw import PlainImage

# Of <linux/fs.h>
_BLKROGET = 0x125E
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B
_INT = struct.Struct("i")


class HostDeviceImage(PlainImage):
    """A block device: it has the size that it has."""

    format_name = "host_device"

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._fd = _device(storage)
        self.sector_size = _number(self._fd, _BLKSSZGET)

    def info(self) -> ImageInfo:
        size = self.virtual_size
        return ImageInfo(self.format_name, size, size, specific=self._specific())

    def _specific(self) -> Mapping[str, object]:
        return {
            "logical-sector-size": self.sector_size,
            "physical-sector-size": _number(self._fd, _BLKPBSZGET),
            "read-only": bool(_number(self._fd, _BLKROGET)),
        }


def _device(storage: Storage) -> int:
    """Return the descriptor of a block device. Raises NotThisFormat."""
    fd = storage.fileno()
    if fd is None or not stat.S_ISBLK(os.fstat(fd).st_mode):
        raise NotThisFormat("this is no block device", hint="--format raw is for files")
    return fd


def _number(fd: int, request: int) -> int:
    answer = bytearray(_INT.size)
    try:
        fcntl.ioctl(fd, request, answer)
    except OSError as error:
        raise ImageIoError(f"the device does not tell its sectors: {error.strerror}") from error
    value: int = _INT.unpack(answer)[0]
    return value


class HostDeviceFormat(Format):
    name: ClassVar[str] = "host_device"
    images = (HostDeviceImage,)
    image: ClassVar[type[HostDeviceImage]] = HostDeviceImage

    def probe(self, storage: Storage) -> bool:
        """Never claim a drive: what is on it may be of any format."""
        return False

    def open(self, storage: Storage, options: OpenOptions) -> HostDeviceImage:
        fd = _device(storage)
        if options.writable and _number(fd, _BLKROGET):
            raise ImageAccessDenied("the device is read-only")
        self.check(fd)
        return self.image(storage)

    def check(self, fd: int) -> None:
        """Refuse a drive of another kind."""


FORMAT = HostDeviceFormat()
