"""All formats, in the order in which they are probed. A new format is one more word.

A module is imported when its format is looked at: all of them together cost 0.1 s, which
whoever names the format, or has one of the first, need not pay.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import overload

from wirt.errors import UsageError
from wirt.image.base import Format, NamedFormat

_NAMES = (
    "qcow2", "qcow", "qed", "cow", "vmdk", "vdi", "vhdx", "parallels", "bochs", "bochs-concat",
    "cloop", "luks", "dmg", "sparseimage", "sparsebundle", "vpc", "vvfat",
    "host_device", "host_cdrom", "host_floppy", "raw",
)  # fmt: skip
"""Each is the name of a format and, with ``_`` for ``-``, of its module in ``image.formats``."""


@cache
def _load(name: str) -> Format:
    known = import_module(f"wirt.image.formats.{name.replace('-', '_')}").FORMAT
    if not isinstance(known, Format) or known.name != name:
        raise TypeError(f"wirt.image.formats.{name} does not define the format {name}")
    return known


class _Formats(Sequence[Format]):
    @overload
    def __getitem__(self, index: int) -> Format: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Format]: ...

    def __getitem__(self, index: int | slice) -> Format | Sequence[Format]:
        if isinstance(index, slice):
            return [_load(name) for name in _NAMES[index]]
        return _load(_NAMES[index])

    def __len__(self) -> int:
        return len(_NAMES)


FORMATS: Sequence[Format] = _Formats()


def find_format(name: str) -> Format:
    """Return the format that ``qemu-img -f`` calls ``name``. Raises UsageError."""
    if name in _NAMES:
        return _load(name)
    near = difflib.get_close_matches(name, _NAMES, n=1)
    raise UsageError(
        f"there is no image format {name[:40]!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_NAMES)}",
    )


def named_format(name: str) -> NamedFormat | None:
    """Return the format whose prefix ``name`` has: ``fat:DIRECTORY``."""
    for known in FORMATS if ":" in name else ():
        if isinstance(known, NamedFormat) and name.startswith(known.prefix):
            return known
    return None
