"""Repair: lowers refcounts that are too high, rebuilds them where they are too low.

A rebuild writes a whole new refcount structure behind everything that is in use and
switches to it by one sector, so a power cut in the middle loses nothing. References to
nowhere are not repaired: nothing can tell what they meant.
"""

from __future__ import annotations

from array import array

from wirt.errors import CorruptImage, ImageError, ImageIoError, UnsupportedImage
from wirt.image.base import CheckResult
from wirt.image.formats.qcow2.check import Inspection
from wirt.image.formats.qcow2.create import refcount_layout
from wirt.image.formats.qcow2.header import CORRUPT, DIRTY, KNOWN_AUTOCLEAR
from wirt.image.formats.qcow2.l2 import COMPRESSED, COPIED, OFFSET
from wirt.image.formats.qcow2.mapping import load_l2
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.widths import pack_counts, unpack_counts
from wirt.image.formats.qcow2.words import words_to


def run_repair(volume: Volume, mode: str) -> CheckResult:
    """Repair and check again; the result tells what was fixed and what is left."""
    if volume.storage.read_only:
        raise ImageIoError("the image is open for reading only, so it cannot be repaired")
    if volume.header.autoclear & ~KNOWN_AUTOCLEAR:
        volume.header.autoclear &= KNOWN_AUTOCLEAR
        volume.header_store.write_first_sector()
    before = Inspection(volume)
    found = before.count()
    if not found.corruptions and not found.leaks and not before.census.miscopied:
        _mark_clean(volume)
        return found
    if mode == "all" and before.rebuild:
        _rebuild(volume, before)
        volume.reload()
    else:
        _correct(volume, before, raises=mode == "all")
        volume.reload()
        _tell_miscopied(volume, before, mode)
    if mode == "all" or not found.corruptions:
        _fix_copied(volume)
    volume.storage.flush()
    volume.mapping.forget(volume.mapping.l1)
    after = Inspection(volume).run()
    after.messages = found.messages + after.messages
    after.corruptions_fixed = max(0, found.corruptions - after.corruptions)
    after.leaks_fixed = max(0, found.leaks - after.leaks)
    if not after.corruptions:
        _mark_clean(volume)
    return after


def _tell_miscopied(volume: Volume, before: Inspection, mode: str) -> None:
    """Say which COPIED flags contradict the refcounts as they are now."""
    now = Inspection(volume)
    now.count()
    before.census.miscopied = now.census.miscopied
    repairs = mode == "all" or not before.result.corruptions
    before.tell_miscopied("Repairing" if repairs else "ERROR")


def _mark_clean(volume: Volume) -> None:
    header = volume.header
    if header.incompatible & (DIRTY | CORRUPT):
        header.incompatible &= ~(DIRTY | CORRUPT)
        volume.header_store.write_first_sector()
        volume.storage.flush()


def _correct(volume: Volume, inspection: Inspection, *, raises: bool) -> None:
    """Lower in place the refcounts that are higher than what is counted; raise the others."""
    counts, refcounts = inspection.census.counts, volume.refcounts
    for index in range(len(refcounts.table.words)):
        block = refcounts.block(index)
        if block is None:
            continue
        first = index * refcounts.per_block
        for slot, have in enumerate(block.words):
            want = int(counts[first + slot]) if first + slot < len(counts) else 0
            if have > want or (raises and have < want <= refcounts.largest):
                inspection.census.say(_repairing(first + slot, have, want))
                block.words[slot] = want
                block.touch(slot, slot + 1)
        if block.dirty:
            volume.storage.pwrite(*block.changed())
            block.clean()


def _repairing(cluster: int, have: int, want: int) -> str:
    return f"Repairing cluster {cluster} refcount={have} reference={want}"


def rebuild_refcounts(volume: Volume, order: int) -> None:
    """Give a consistent image refcounts of another width (log2 of bits)."""
    inspection = Inspection(volume)
    found = inspection.run()
    if found.corruptions:
        raise CorruptImage(
            "the image is inconsistent", hint="repair it: wirt img check --repair all"
        )
    _refuse_narrow(volume, inspection, order)
    before = volume.header.refcount_order
    volume.header.refcount_order = order
    try:
        _rebuild(volume, inspection)
    except ImageError:
        volume.header.refcount_order = before
        raise
    volume.reload()


def _refuse_narrow(volume: Volume, inspection: Inspection, order: int) -> None:
    for cluster, count in enumerate(inspection.census.counts):
        if count >= 1 << (1 << order):
            raise UnsupportedImage(
                f"Cannot decrease refcount entry width to {1 << order} bits: Cluster at offset "
                f"{cluster << volume.header.cluster_bits:#x} has a refcount of {count}"
            )


def _rebuild(volume: Volume, inspection: Inspection) -> None:
    """Write new blocks and a new table behind the last used cluster."""
    header, size = volume.header, volume.header.cluster_size
    counts = array("Q", map(int, inspection.census.counts))
    _forget_old_structure(volume, inspection, counts)
    used = max((i + 1 for i, count in enumerate(counts) if count), default=1)
    used = max(used, -(-volume.storage.size() // size))
    table, blocks = refcount_layout(used, header)
    del counts[used:]
    counts.extend([0] * (used - len(counts)) + [1] * (blocks + table))
    counts.extend([0] * (blocks * header.refcounts_per_block - len(counts)))
    typecode = unpack_counts(b"", header.refcount_order).typecode
    most = (1 << (1 << header.refcount_order)) - 1
    packed = pack_counts(array(typecode, (min(c, most) for c in counts)), header.refcount_order)
    volume.storage.pwrite(used * size, packed)
    offsets = array("Q", ((used + i) * size for i in range(blocks)))
    raw = words_to(offsets).ljust(table * size, b"\0")
    volume.storage.pwrite((used + blocks) * size, raw)
    volume.storage.flush()
    header.reftable_offset, header.reftable_clusters = (used + blocks) * size, table
    volume.header_store.write_first_sector()
    volume.storage.flush()


def _forget_old_structure(volume: Volume, inspection: Inspection, counts: array[int]) -> None:
    """The clusters of the old table and blocks are free once the new ones are in place."""
    header, bits = volume.header, volume.header.cluster_bits
    first = header.reftable_offset >> bits
    places = list(range(first, first + header.reftable_clusters))
    places += [offset >> bits for _, offset in inspection.blocks()]
    inspection.census.say("Rebuilding refcount structure")
    for cluster in places:
        if cluster < len(counts) and counts[cluster]:
            inspection.census.say(_repairing(cluster, 1, 0))
            counts[cluster] -= 1


def _fix_copied(volume: Volume) -> None:
    """Set COPIED in the active tables to what the refcounts say."""
    header, refcounts = volume.header, volume.refcounts
    l1, bits = volume.mapping.l1, volume.header.cluster_bits
    for index, word in enumerate(l1.words):
        offset = word & OFFSET
        if not offset or offset & header.cluster_size - 1 or offset >= volume.storage.size():
            continue
        right = _with_copied(word, refcounts.get(offset >> bits))
        if right != word:
            l1.words[index] = right
            l1.touch(index, index + 1)
        _fix_table(volume, offset)
    if l1.dirty:
        volume.storage.pwrite(*l1.changed())
        l1.clean()


def _fix_table(volume: Volume, offset: int) -> None:
    header, bits = volume.header, volume.header.cluster_bits
    words = load_l2(volume.storage, header, offset)
    changed = False
    for slot in range(0, len(words), volume.mapping.stride):
        entry = words[slot]
        if entry & COMPRESSED:
            right = entry & ~COPIED
        elif entry & OFFSET and not header.has_data_file:
            right = _with_copied(entry, volume.refcounts.get((entry & OFFSET) >> bits))
        else:
            continue
        if right != entry:
            words[slot] = right
            changed = True
    if changed:
        volume.storage.pwrite(offset, words_to(words))


def _with_copied(word: int, count: int) -> int:
    return word | COPIED if count == 1 else word & ~COPIED
