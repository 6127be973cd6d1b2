"""Reading ext2, ext3 and ext4 from an image, as it would be after its journal was replayed.

Nothing is mounted, written or run, so a file system that a guest made to harm its reader finds
bounded loops of this language only. Little-endian but for the journal.
Specification: Documentation/filesystems/ext4 of the Linux kernel.
"""
