"""Write the table of disk formats (docs/reference/formats.md) from what the code can do."""

from __future__ import annotations

import sys
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

HEAD = """# Disk formats

This table is made from the code by `tools/formats.py`. *backing*: an image may show another
one through, which is opened only if you allow it. *compressed*: compressed data are read.

| format | read | write | create | resize | check | snapshot | backing | compressed |
|---|---|---|---|---|---|---|---|---|
"""

NOTES = """
Every format reads and, where marked, writes in place; a subformat may do less:

- **vpc**: differencing disks are read through their sector bitmaps and parents, which qemu-img
  ignores. Fixed disks are found by their footer. `azure=on` makes one of whole MiB.
- **vhdx**: differencing disks and 4096-byte sectors too. A log that was not replayed is read
  through without changing the file, and replayed when the image is opened for writing.
- **vdi**: resizing is for dynamic disks. Differencing disks do not name their parent's file;
  it is looked for as `{id}.vdi` beside them.
- **vmdk**: streamOptimized and version 3 disks can be read only; seSparse is not supported.
- **cow**: overlays of User-mode Linux (`subformat=uml3`, `uml2`, `uml1`), whose backing file must
  not change, and of QEMU before 2.2 (`subformat=qemu`), which need none.
- **dmg**: UDIF with every compression (ADC, zlib, bzip2, LZFSE, LZMA), and images encrypted with
  a passphrase, whatever is inside. **sparseimage**, **sparsebundle** (name the directory; its
  bands are opened if you allow it). LZFSE needs `wirt[apple]`, encryption `wirt[crypto]`.
- **luks**: version 1 is read and written; version 2 is read (keys by PBKDF2 and Argon2, AES-XTS and
  AES-CBC, sectors of 512 to 4096 bytes). A new disk is garbage until it is written. Needs
  `wirt[crypto]`.
- **qcow**: encrypted disks can be read only.
- **bochs**: growing disks.
- **cloop**: versions 1 to 4 with every compression; version 2 is made, and written once: from its
  start to its end, as `wirt img convert` does.
- **parallels**: single files; disks with an extension (dirty bitmaps) can be read only.
"""


def mark(format_: Format, interface: type[Image]) -> str:
    return "yes" if any(issubclass(image, interface) for image in format_.images) else "–"


def row(format_: Format) -> str:
    created = type(format_).create is not Format.create
    cells = [format_.name, "yes", mark(format_, WritableImage), "yes" if created else "–"]
    cells += [mark(format_, interface) for interface in (Resizable, Checkable, HasSnapshots)]
    cells += ["yes" if known else "–" for known in (format_.has_backing, format_.has_compression)]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    rows = sorted(row(known) for known in FORMATS)
    return HEAD + "\n".join(rows) + "\n" + NOTES


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
