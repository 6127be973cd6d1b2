"""bochs: the disks of the Bochs emulator, of every mode but the flat one.

Specification: "Disk Image Modes" in the Bochs user manual, and its ``hdimage.h``.
Little-endian::

    redolog 0 "Bochs Virtual HD Image"   32 "Redolog"   48 "Growing", "Undoable" or "Volatile"
            64  version 0x00020000 (0x00010000 with the disk size at 84)
            68  header size   72 catalog entries   76 bitmap bytes   80 extent bytes
            84  time of the base disk, as FAT counts it (version 2 only)   88 disk size
            catalog: u32 of each extent: its number, all ones: not allocated
            extents: each a bitmap of its sectors (lowest bit first; whole sectors long), its data

    sparse  0 0x02468ace  4 version 2 (1 without a disk size)  8 bytes of a page  12 pages
            16 disk size  256 u32 of each page: its number, all ones: not allocated
            pages: from the next multiple of the page size on

A sector whose bit is 0 reads as zeros in a growing disk, else as the base disk, whose name is
that of the redolog without ``.redolog`` (volatile: without a dot and six letters). A page that
is not allocated reads as the parent, if the name ends in a digit from 1 to 9 and there is a
file whose digit is one less.
"""

from wirt.image.formats.bochs.format import FORMAT

__all__ = ["FORMAT"]
