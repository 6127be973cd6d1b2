"""An ext4 disk image from a tree of files, without mounting anything."""

from __future__ import annotations

import os
from pathlib import Path

from wirt.catalog import child
from wirt.catalog.namespace import enter_command
from wirt.host.process import find_program

ROOT_LABEL = "wirt-root"


def make_disk(tree: Path, disk: Path, *, size: int) -> None:
    """Write ``disk``, a sparse raw image of ``size`` bytes with the files of ``tree``.

    mke2fs runs in the namespace that made ``tree``, so that the owners are those of the
    guest. Raises MissingDependency, HostError, NoSpace.
    """
    with disk.open("xb") as file:
        file.truncate(size)
    child.run(
        [
            *enter_command(),
            find_program("mke2fs"),
            "-q",
            *("-t", "ext4"),
            *("-L", ROOT_LABEL),
            *("-m", "1"),
            *("-e", "remount-ro"),
            # The inode tables are zero already: the file is new.
            *("-E", "lazy_itable_init=1,assume_storage_prezeroed=1,discard,root_owner=0:0"),
            *("-d", os.fspath(tree)),
            os.fspath(disk),
        ],
        what="writing the file system",
    )
