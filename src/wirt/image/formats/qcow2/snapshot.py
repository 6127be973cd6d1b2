"""Internal snapshots: create, apply, delete.

Creating gives the old tables to the snapshot and new copies, with COPIED cleared, to the
active disk; data is shared. Applying and deleting build the active tables anew likewise.
Each is one switch (``shadow.py``), so a power cut leaves the state before or after.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

from wirt.errors import NotFound, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.formats.qcow2.header import MAX_SNAPSHOTS
from wirt.image.formats.qcow2.l2 import COPIED, OFFSET
from wirt.image.formats.qcow2.mapping import load_l1, load_l2
from wirt.image.formats.qcow2.shadow import Shadow, shadow
from wirt.image.formats.qcow2.snapshot_table import Snapshot, pack_snapshots, read_snapshots
from wirt.image.formats.qcow2.volume import Volume
from wirt.image.formats.qcow2.words import words_to

_LONGEST_NAME = 255


def list_snapshots(volume: Volume) -> list[Snapshot]:
    return read_snapshots(volume.storage, volume.header)[0]


def find_snapshot(snapshots: Sequence[Snapshot], name: str) -> Snapshot:
    """Return the snapshot of that id, else of that name. Raises NotFound."""
    for key in ("id", "name"):
        for snapshot in snapshots:
            if getattr(snapshot, key) == name:
                return snapshot
    raise NotFound(f"there is no snapshot {name!r}", hint="list them: wirt img snapshot ls")


def create_snapshot(volume: Volume, name: str) -> None:
    _refuse_data_file(volume)
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise UsageError(f"a snapshot's name has at most {_LONGEST_NAME} bytes")
    with shadow(volume) as change:
        snapshots, length = read_snapshots(volume.storage, volume.header)
        if len(snapshots) >= MAX_SNAPSHOTS:
            raise OutOfBounds("the image has as many snapshots as it can have")
        header, old = volume.header, volume.mapping.l1.words
        now = time.time_ns()
        snapshots.append(
            Snapshot(
                l1_offset=header.l1_offset,
                l1_size=header.l1_size,
                id=_next_id(snapshots),
                name=name,
                date_seconds=now // 10**9 & 0xFFFF_FFFF,
                date_nanoseconds=now % 10**9,
                vm_clock=0,
                vm_state_size=0,
                virtual_size=header.size,
                icount=0,
            )
        )
        words = _copy_tree(change, old)
        _switch(change, snapshots, length, l1_offset=change.place(words_to(words)))


def _next_id(snapshots: Sequence[Snapshot]) -> str:
    used = [int(item.id) for item in snapshots if item.id.isdecimal() and len(item.id) < 20]
    return str(max(used, default=0) + 1)


def apply_snapshot(volume: Volume, name: str) -> None:
    """Make the active disk what the snapshot holds, its size included."""
    _refuse_data_file(volume)
    with shadow(volume) as change:
        snapshots, length = read_snapshots(volume.storage, volume.header)
        chosen = find_snapshot(snapshots, name)
        header = volume.header
        kept = load_l1(volume.storage, chosen.l1_offset, chosen.l1_size).words
        needed = header.l1_entries_for(chosen.virtual_size)
        kept.extend([0] * (needed - len(kept)))
        words = _copy_tree(change, kept)
        drop_tree(change, volume.mapping.l1.words, header.l1_offset)
        _switch(
            change,
            snapshots,
            length,
            l1_offset=change.place(words_to(words)),
            l1_size=len(words),
            size=chosen.virtual_size,
        )


def delete_snapshot(volume: Volume, name: str) -> None:
    _refuse_data_file(volume)
    with shadow(volume) as change:
        snapshots, length = read_snapshots(volume.storage, volume.header)
        chosen = find_snapshot(snapshots, name)
        snapshots.remove(chosen)
        dropped = load_l1(volume.storage, chosen.l1_offset, chosen.l1_size).words
        drop_tree(change, dropped, chosen.l1_offset)
        old = volume.mapping.l1.words
        words = _own_again(change, old)
        fields = {}
        if words != old:
            change.tally.add(volume.header.l1_offset, len(old) * 8, -1)
            fields["l1_offset"] = change.place(words_to(words))
        _switch(change, snapshots, length, **fields)


def _refuse_data_file(volume: Volume) -> None:
    if volume.header.has_data_file:
        raise UnsupportedImage("an image with an external data file cannot have snapshots")


def _switch(change: Shadow, snapshots: Sequence[Snapshot], old_length: int, **fields: int) -> None:
    header = change.volume.header
    change.tally.add(header.snapshots_offset, old_length, -1)
    change.switch(
        **fields,
        snapshots_offset=change.place(pack_snapshots(snapshots)),
        snapshot_count=len(snapshots),
    )


def _copy_tree(change: Shadow, l1: array[int]) -> array[int]:
    """Copy all L2 tables, sharing what they refer to; returns the L1 of the copy."""
    volume = change.volume
    copied = array("Q", bytes(len(l1) * 8))
    for index, word in enumerate(l1):
        if word & OFFSET:
            words = load_l2(volume.storage, volume.header, word)
            change.tally.add_table(words, 1)
            _clear_copied(words, volume.mapping.stride)
            copied[index] = change.place(words_to(words)) | COPIED
    return copied


def _clear_copied(words: array[int], stride: int) -> None:
    if stride == 1:
        keep = ~COPIED
        words[:] = array("Q", [entry & keep for entry in words])
        return
    for slot in range(0, len(words), stride):
        words[slot] &= ~COPIED


def drop_tree(change: Shadow, l1: array[int], offset: int) -> None:
    """Give up one reference to everything below an L1 table, and the table itself."""
    volume = change.volume
    change.tally.add(offset, len(l1) * 8, -1)
    for word in l1:
        if word & OFFSET:
            change.tally.add_table(load_l2(volume.storage, volume.header, word), -1)
            change.tally.add(word & OFFSET, volume.header.cluster_size, -1)


def _own_again(change: Shadow, l1: array[int]) -> array[int]:
    """Set COPIED wherever the active disk becomes the only user; returns the new L1."""
    volume, bits = change.volume, change.volume.header.cluster_bits
    result = array("Q", l1)
    for index, word in enumerate(l1):
        offset = word & OFFSET
        if not offset:
            continue
        words = load_l2(volume.storage, volume.header, word)
        if change.tally.own(words):
            change.tally.add(offset, volume.header.cluster_size, -1)
            result[index] = change.place(words_to(words)) | COPIED
        elif change.tally.count(offset >> bits) == 1:
            result[index] = word | COPIED
    return result
