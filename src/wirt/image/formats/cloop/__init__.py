r"""cloop: the compressed disks of KNOPPIX, versions 1 to 4; version 2 can be made.

Specification: ``cloop.h`` of cloop 4, ``compressed_loop.h`` of cloop-utils, and of the forks
that made versions 1 (2003) and 3 (2013). Big-endian, except for version 1::

    header   0 a shell script, 128 bytes: its second line is "#V2.0 Format", V1.0 or V4.0
             128 block size  132 blocks
    offsets  blocks + 1 of u64: where each block begins; the last is the end
    blocks   each compressed by itself

    version 1  zlib; offsets in the byte order of the host that made it, or u32 (before 1.0)
    version 2  zlib
    version 4  bits 60-63 of an offset: 0 zlib, 1 as it is, 2 xz, 3 LZ4, 4 LZO1X
               versions 2 and 4 may be turned round: blocks, offsets, header

    version 3  blocks, then at any place: u32 blocks, u32 block size, u64 disk size, offsets,
               flags (u32 of each block: 0 as it is, 2 zlib, 4 LZO1X, 8 xz, 16 LZ4),
               and at the end: u64 where that begins, u32 version, "\nCLOOP3\n"
"""

from wirt.image.formats.cloop.format import FORMAT
from wirt.image.formats.cloop.unpacking import inflate

__all__ = ["FORMAT", "inflate"]
