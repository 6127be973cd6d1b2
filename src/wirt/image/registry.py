"""All formats, in the order in which they are probed. A new format is one more line."""

from __future__ import annotations

import difflib

from wirt.errors import UsageError
from wirt.image.base import Format, NamedFormat
from wirt.image.formats import (
    bochs,
    bochs_concat,
    cloop,
    cow,
    dmg,
    luks,
    parallels,
    qcow,
    qcow2,
    qed,
    raw,
    sparsebundle,
    sparseimage,
    vdi,
    vhdx,
    vmdk,
    vpc,
    vvfat,
)

FORMATS: tuple[Format, ...] = (
    qcow2.FORMAT,
    qcow.FORMAT,
    qed.FORMAT,
    cow.FORMAT,
    vmdk.FORMAT,
    vdi.FORMAT,
    vhdx.FORMAT,
    parallels.FORMAT,
    bochs.FORMAT,
    bochs_concat.FORMAT,
    cloop.FORMAT,
    luks.FORMAT,
    dmg.FORMAT,
    sparseimage.FORMAT,
    sparsebundle.FORMAT,
    vpc.FORMAT,
    vvfat.FORMAT,
    raw.FORMAT,
)


def find_format(name: str) -> Format:
    """Return the format that ``qemu-img -f`` calls ``name``. Raises UsageError."""
    for known in FORMATS:
        if known.name == name:
            return known
    names = [known.name for known in FORMATS]
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"there is no image format {name[:40]!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}",
    )


def named_format(name: str) -> NamedFormat | None:
    """Return the format whose prefix ``name`` has: ``fat:DIRECTORY``."""
    for known in FORMATS:
        if isinstance(known, NamedFormat) and name.startswith(known.prefix):
            return known
    return None
