"""host_floppy: a floppy drive of the host, with a disk in it."""

from __future__ import annotations

from wirt.errors import NotThisFormat
from wirt.image.formats.host_device import HostDeviceFormat, HostDeviceImage
from wirt.image.storage.drive import is_floppy


class HostFloppyImage(HostDeviceImage):
    """A disk in a drive."""

    format_name = "host_floppy"


class HostFloppyFormat(HostDeviceFormat):
    name = "host_floppy"
    images = (HostFloppyImage,)
    image = HostFloppyImage

    def check(self, fd: int) -> None:
        if not is_floppy(fd):
            raise NotThisFormat("this is no floppy drive", hint="--format host_device")


FORMAT = HostFloppyFormat()
