"""Disks whose writes are lost: an empty qcow2 for each start, over the untouched image.

It is removed as soon as QEMU has it open, so that nothing of it can stay behind.
"""

from __future__ import annotations

import contextlib
import os

from wirt.qemu.block import is_discarding
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.vm.preflight import image_path


def overlay_paths(paths: VmPaths, machine: Machine) -> dict[int, str]:
    """Return index of the disk → path of its overlay."""
    return {
        index: os.path.join(paths.disks, f"discarded{index}.qcow2")
        for index, disk in enumerate(machine.disks)
        if disk.image and is_discarding(disk)
    }


def make_overlays(paths: VmPaths, machine: Machine) -> None:
    """Make the overlays anew. Raises ImageError."""
    from wirt.image.create import create_image
    from wirt.image.open import open_image

    for index, overlay in overlay_paths(paths, machine).items():
        disk = machine.disks[index]
        base = image_path(paths, disk)
        with open_image(base, format=disk.format, force_share=True, with_backing=False) as image:
            size = image.virtual_size
        _remove(overlay)
        create_image(overlay, "qcow2", size)


def remove_overlays(paths: VmPaths, machine: Machine) -> None:
    """Remove the overlays: a QEMU that has them open keeps them until it ends."""
    for overlay in overlay_paths(paths, machine).values():
        _remove(overlay)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
