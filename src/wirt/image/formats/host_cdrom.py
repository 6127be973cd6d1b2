"""host_cdrom: a CD or DVD drive of the host, with a disc in it.

Its door is locked while the image is open (``wirt.image.storage.drive``).
"""

from __future__ import annotations

from collections.abc import Mapping

from wirt.errors import NotThisFormat
from wirt.image.formats.host_device import HostDeviceFormat, HostDeviceImage
from wirt.image.storage.drive import cd_state, is_cd_drive


class HostCdromImage(HostDeviceImage):
    """A disc in a drive."""

    format_name = "host_cdrom"

    def _specific(self) -> Mapping[str, object]:
        state = cd_state(self._fd)
        told = {"tray": state.tray, "disc": state.disc or "unknown"} if state else {}
        return {**told, **super()._specific()}


class HostCdromFormat(HostDeviceFormat):
    name = "host_cdrom"
    images = (HostCdromImage,)
    image = HostCdromImage

    def check(self, fd: int) -> None:
        if not is_cd_drive(fd):
            raise NotThisFormat("this is no CD drive", hint="--format host_device")


FORMAT = HostCdromFormat()
