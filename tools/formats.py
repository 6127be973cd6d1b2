"""Write the table of disk formats (docs/reference/formats.md) from what the code can do."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from wirt.image.base import (
    Checkable,
    Format,
    HasSnapshots,
    Image,
    Resizable,
    WritableImage,
)
from wirt.image.registry import FORMATS

COLUMNS = ("read", "write", "create", "resize", "check", "snapshot", "backing", "compressed")
PEERS = Path(__file__).with_name("format_peers.toml")

HEAD = """# Disk formats

This table is made from the code by `tools/formats.py`. *backing*: an image may show another
one through, which is opened only if you allow it. *compressed*: compressed data are read.
The last two columns say what else qemu-img 7.2 and dissect.hypervisor 3.21 do; a test tries
qemu-img's.
"""

NOTES = """
Whatever the bytes of an image, reading, checking or writing it ends with data or with one of the
image errors, within a second and 64 MiB: `make fuzz` damages images of every format in this table
while the kernel holds those limits.

Every format reads and, where marked, does the rest; a subformat may do less:

- **vpc**: differencing disks are read through their sector bitmaps and parents, which qemu-img
  ignores (it returns wrong data and exit code 0). Fixed disks are found by their footer, cannot
  be checked and have no parent. `azure=on` makes a fixed one of whole MiB, as Azure wants it;
  `force_size=off` rounds the size up to a geometry, for Virtual PC.
- **vhdx**: differencing disks and 4096-byte sectors too. A log that was not replayed is read
  through without changing the file, and replayed when the image is opened for writing.
- **vdi**: static disks cannot be resized. Differencing disks do not name their parent's file;
  it is looked for as `{id}.vdi` beside them, or under the name that wirt gave it.
- **vmdk**: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, vmfs and
  vmfsSparse are written in place. streamOptimized is written once, front to back, by `convert`
  (version 3, with footer, as ESXi takes it). seSparse is read only. Extents of different kinds
  may follow each other.
- **cow**: overlays of User-mode Linux (`subformat=uml3`, `uml2`, `uml1`), whose backing file must
  not change, and of QEMU before 2.2 (`subformat=qemu`), which need none.
- **dmg**: UDIF with every compression (ADC, zlib, bzip2, LZFSE, LZMA), and images encrypted with
  a passphrase, whatever is inside. **sparseimage**, **sparsebundle** (name the directory; its
  bands are opened if you allow it). LZFSE needs `wirt[apple]`, encryption `wirt[crypto]`.
- **luks**: version 1 is read and written; version 2 is read (keys by PBKDF2 and Argon2, AES-XTS and
  AES-CBC, sectors of 512 to 4096 bytes). A new disk is garbage until it is written. Needs
  `wirt[crypto]`.
- **qcow**: encrypted disks can be read only.
- **host_device**, **host_cdrom**, **host_floppy**: drives of this host, as raw disks that say what
  their sectors are. For writing they are opened alone: not while they are mounted. A drive
  without a medium is an error of its own, and a disc is locked in while it is read: see
  [CDs and floppies](../how-to/discs.md). A disc that is no image has the format host_cdrom.
- **bochs**: growing, sparse and, over a base disk, undoable and volatile ones. A redolog names no
  base: it is found by its own name, without `.redolog`. **bochs-concat**: flat files that are
  counted up (`c.img1`, `c.img2` …); it is never guessed, say `--format bochs-concat`.
- **cloop**: versions 1 to 4 with every compression; version 2 is made, and written once: from its
  start to its end, as `wirt img convert` does.
- **parallels**: single files, and `.hdd` directories with snapshots and several storages, of which
  the top images are written. Disks with an extension (dirty bitmaps) can be read only.

## After a power cut

A write in place is ordered: what was flushed is there, and the image opens again. What an
interrupted write had already reserved is found as a leak by `check` and given back by
`check --repair leaks` where it lies at the end of the file. `resize`, `rebase`, `flatten` and
`commit` leave the old disk or the new one. A fixed VHD that was about to grow may show its old
footer in the first sector of the new part. While `commit` writes the parent of a VDI, VHDX or
VMDK child, the parent has a new identity already: after a cut the child is refused until
`rebase --unsafe` to the same parent says that it belongs to it; then `commit` can be repeated.
"""


def abilities(format_: Format) -> list[str]:
    """Return the columns that the format has, from its classes."""

    def some(interface: type[Image]) -> bool:
        return any(issubclass(image, interface) for image in format_.images)

    known = {
        "read": True,
        "write": some(WritableImage),
        "create": type(format_).create is not Format.create,
        "resize": some(Resizable),
        "check": some(Checkable),
        "snapshot": some(HasSnapshots),
        "backing": format_.has_backing,
        "compressed": format_.has_compression,
    }
    return [column for column in COLUMNS if known[column]]


def row(format_: Format, peers: dict[str, dict[str, list[str]]]) -> str:
    own = abilities(format_)
    cells = [format_.name, *("yes" if column in own else "–" for column in COLUMNS)]
    cells += [", ".join(peer.get(format_.name, [])) or "–" for peer in peers.values()]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    peers = tomllib.loads(PEERS.read_text(encoding="utf-8"))
    heads = ["format", *COLUMNS, "qemu-img 7.2", "dissect 3.21"]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    table += sorted(row(known, peers) for known in FORMATS)
    return HEAD + "\n" + "\n".join(table) + "\n" + NOTES


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
