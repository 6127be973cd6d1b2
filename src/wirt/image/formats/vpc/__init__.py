"""vpc (VHD): disks of Virtual PC, Hyper-V generation 1, Azure and XenServer.

Specification: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006). All
numbers are big-endian.

::

    fixed         data | footer (512 bytes)
    dynamic       footer copy | header (1024) | BAT | blocks | footer
    differencing  as dynamic, with the parent's id, name and locators in the header

    footer   0 "conectix"   8 features     12 version    16 offset of header (all ones: fixed)
            24 time         28 creator     32 its version 36 its system
            40 first size   48 size        56 cylinders 58 heads 59 sectors
            60 type: 2 fixed, 3 dynamic, 4 differencing   64 checksum   68 id   84 saved state
    header   0 "cxsparse"   8 all ones     16 offset of BAT   24 version   28 BAT entries
            32 block size   36 checksum    40 parent's id     56 its time  64 its name (UTF-16BE)
           576 eight locators of 24 bytes: code, space, length, reserved, offset
    BAT      u32 sector of each block, all ones: not allocated
    block    a bitmap of its sectors (whole sectors long; highest bit first), then the data

In a differencing disk a sector whose bit is 0 is the parent's, even in an allocated block.
Locator codes: W2ru and W2ku a relative and an absolute Windows path (UTF-16LE), MacX a file
URL (UTF-8), Wi2r and Wi2k their deprecated forms. XenServer puts a map of full blocks behind
the BAT ("tdbatmap"); bitmaps written here are full in any case, so that it stays right.

What takes several sectors (parent, size, place of the BAT) is written anew behind everything
else; then the footer at the end of the file switches to it, and its copy at the start after it.

The size: Virtual PC and the first QEMU versions ("vpc ", "qemu") believe the geometry, all
others the size field. Images written here say "qem2", whose size field every reader takes.
"""

from wirt.image.formats.vpc.format import FORMAT

__all__ = ["FORMAT"]
