"""host_cdrom: a CD or DVD drive of the host, with a disc in it."""

from __future__ import annotations

import fcntl

from wirt.errors import ImageIoError, NotThisFormat
from wirt.image.formats.host_device import HostDeviceFormat

# Of <linux/cdrom.h>
_DRIVE_STATUS = 0x5326
_CURRENT_SLOT = 0x7FFFFFFF
_PROBLEMS = {
    1: "there is no disc in the drive",
    2: "the tray is open",
    3: "the drive is not ready",
}


class HostCdromFormat(HostDeviceFormat):
    name = "host_cdrom"

    def check(self, fd: int) -> None:
        try:
            status = fcntl.ioctl(fd, _DRIVE_STATUS, _CURRENT_SLOT)
        except OSError as error:
            raise NotThisFormat("this is no CD drive") from error
        if status in _PROBLEMS:
            raise ImageIoError(_PROBLEMS[status], hint="insert a disc")


FORMAT = HostCdromFormat()
