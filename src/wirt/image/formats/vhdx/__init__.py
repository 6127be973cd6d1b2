"""vhdx: disks of Hyper-V, generation 2.

Specification: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format" (Microsoft). All numbers
are little-endian; the structures lie at multiples of 64 KiB, blocks at multiples of 1 MiB.

::

    0      "vhdxfile", the creator's name (UTF-16)
    64 K   header 1, 128 K header 2: the one with the higher sequence number is valid
            0 "head"  4 CRC-32C  8 sequence  16 file id  32 data id  48 log id
           64 log version  66 version (1)  68 log length  72 log offset
    192 K  region table 1, 256 K region table 2 (the same): where BAT and metadata lie
            0 "regi"  4 CRC-32C  8 entries  16 entries of 32 bytes: id, offset, length, required
    log    a ring of entries, see ``log.py``; not empty if the log id is not zero
    metadata  0 "metadata"  10 entries  32 entries of 32 bytes: id, offset, length, flags
    BAT    u64 of each block: bits 0-2 state, bits 20-63 offset in MiB; after each
           chunk (2^23 sectors) of blocks one entry more for the chunk's sector bitmap

    state  0 not present  1 undefined  2 zero  3 unmapped  6 present  7 partially present

In a differencing disk "not present" is the parent's; in a partially present block the
sectors whose bit (lowest first) is 0 are.

A block is durable before its entry is written, and an entry lies in one sector: that needs
no log. What takes several sectors (size, place of the table, parent) goes through the log.
"""

from wirt.image.formats.vhdx.format import FORMAT

__all__ = ["FORMAT"]
