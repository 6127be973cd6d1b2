"""dmg: Apple's disk images (UDIF), read only.

Apple publishes no specification. The layout is that of QEMU's ``block/dmg.c`` and of "Mac OS
disk image types" in libmodi's documentation. Numbers are big-endian, a sector has 512 bytes.

::

    data fork   the chunks, one behind the other
    plist       XML: resource-fork → blkx → for each partition: Data, a block table; or
    resources   the same block tables as resources "blkx" of a classic resource fork
    trailer     the last 512 bytes:
                0 "koly"  4 version 4   8 length  24 data fork: offset, length
                40 resource fork: offset, length   60 segments
                216 plist: offset, length   492 sectors of the disk

    block table 0 "mish"  4 version 1  8 first sector  16 sectors  24 offset of the data
                200 chunks, then for each: u32 kind, u32, u64 first sector (from the table's),
                u64 sectors, u64 offset in the data fork, u64 length

    kind        0 zeros  1 as it is  2 unused  0x80000004 ADC  5 zlib  6 bzip2  7 LZFSE  8 LZMA
                0x7ffffffe a comment  0xffffffff the end

An encrypted image (see ``encryption.py``) holds such a file, a sparse image, or a plain disk.
"""

from wirt.image.formats.dmg.format import FORMAT

__all__ = ["FORMAT"]
