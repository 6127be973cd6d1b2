"""Telling an image whose clusters were allocated without being written."""

from __future__ import annotations

from wirt.image.base import Image
from wirt.image.formats.mapped import stored_size
from wirt.image.formats.qcow2.view import Qcow2View


def is_preallocated(image: Image) -> bool:
    """Return whether the image counts clearly more clusters as used than the file occupies.

    Then it is worth asking the file which of the clusters are holes. The bound is QEMU's.
    """
    if not isinstance(image, Qcow2View):
        return False
    volume = image.volume
    bits = volume.header.cluster_bits
    occupied = stored_size(volume.storage) >> bits
    threshold = max(occupied * 10 // 9, occupied + 2)
    refcounts = volume.refcounts
    clusters = (volume.storage.size() - 1 >> bits) + 1
    used = 0
    for index in range(-(-clusters // refcounts.per_block)):
        block = refcounts.block(index)
        if block is not None:
            used += len(block.words) - block.words.count(0)
        if used >= threshold:
            return True
    return False
