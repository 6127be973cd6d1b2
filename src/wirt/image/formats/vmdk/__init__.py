"""vmdk: disks of VMware.

Specification: "Virtual Disk Format 5.0" (VMware, 2011). Numbers are little-endian, places
count in sectors of 512 bytes. COWD is not in it; its layout is the one that libvmdk's
documentation describes. seSparse is not supported.

::

    descriptor  text: version, CID, parentCID, createType, parentFileNameHint, and the
                extents: ACCESS SECTORS TYPE "FILE" [OFFSET], TYPE one of FLAT, ZERO, VMFS,
                SPARSE, VMFSSPARSE
    SPARSE      0 "KDMV"  4 version  8 flags  12 capacity  20 grain  28 descriptor  36 its size
               44 entries of a grain table  48 spare grain directory  56 grain directory
               64 overhead  72 clean?  73 newline test  77 compression (1: deflate)
                grain directory: u32 sector of each grain table; grain table: u32 sector of
                each grain: 0 not allocated, 1 zeros (flag 4), else its place. With the flags
                0x30000 a grain is stored as: u64 LBA, u32 length, zlib stream; if the header's
                directory is all ones, a footer (a header) lies 1024 bytes before the end
    COWD        0 "COWD"  4 version  8 flags  12 sectors  16 grain  20 directory  24 entries

A disk whose parentCID is not all ones shows its parent through what is not allocated.
"""

from wirt.image.formats.vmdk.format import FORMAT

__all__ = ["FORMAT"]
