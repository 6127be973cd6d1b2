"""host_floppy: a floppy drive of the host."""

from __future__ import annotations

import os

from wirt.errors import NotThisFormat
from wirt.image.formats.host_device import HostDeviceFormat

_MAJOR = 2  # of the kernel's floppy driver


class HostFloppyFormat(HostDeviceFormat):
    name = "host_floppy"

    def check(self, fd: int) -> None:
        if os.major(os.fstat(fd).st_rdev) != _MAJOR:
            raise NotThisFormat("this is no floppy drive")


FORMAT = HostFloppyFormat()
