"""Opening the images of a machine or a state for wirt's own eyes, whatever a guest made of them.

A QEMU that a guest has taken over can name any file as the backing image of its disk, also in
images that were its own before they were frozen. wirt as root would open it; so wirt opens what
that QEMU could open itself, and nothing below the directories that are theirs to write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from wirt.errors import ImageAccessDenied
from wirt.image.base import AllowLocalFiles, Image, OpenGate
from wirt.image.open import open_image
from wirt.store.atomic import host_error
from wirt.store.layout import Home
from wirt.vm.ownership import reachable


@dataclass(frozen=True, slots=True)
class AsItsQemu(OpenGate):
    """Allows what the QEMU of ``uid`` and ``group`` may read; for uid 0, any local file."""

    home: Home
    uid: int
    group: int = 0

    def allows(self, name: str, *, role: str, referrer: str) -> bool:
        if not AllowLocalFiles().allows(name, role=role, referrer=referrer):
            return False
        path = os.path.realpath(os.path.join(os.path.dirname(referrer), name))
        if not self.uid:
            return True
        if path.startswith(os.path.realpath(self.home.vms) + os.sep):
            return False
        try:
            return reachable(path, self.uid, group=self.group, write=False)
        except OSError:
            return True  # opening it says what is wrong


def open_disk(path: str, image_format: str, gate: AsItsQemu, *, running: bool = False) -> Image:
    """Open a disk with its chain for reading. Raises ImageError.

    ``running``: a QEMU has it open; the caller knows that nothing is written meanwhile.
    """
    if gate.uid and os.path.islink(path):
        raise ImageAccessDenied("the image is a link, which its QEMU may have made", path=path)
    return open_image(path, format=image_format, gate=gate, force_share=running)


def status_of(path: str) -> os.stat_result:
    """Return what stat() says of an image. Raises HostError."""
    try:
        return os.stat(path)
    except OSError as error:
        raise host_error(error, path) from error
