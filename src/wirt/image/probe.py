"""Finding the format of a file from its bytes, without guessing.

Every format is asked. One claim is an answer, several are an error that names them. A file
that none claims is raw only if the caller may believe that: a guest can write any header
into its raw disk, so the format of a disk that was in a guest's hands is never probed.
"""

from __future__ import annotations

import os

from wirt.errors import AmbiguousFormat
from wirt.image.base import Storage
from wirt.image.registry import FORMATS
from wirt.image.storage.file import FileStorage


def claims(storage: Storage) -> list[str]:
    """Return the names of all formats that claim the bytes."""
    return [known.name for known in FORMATS if known.probe(storage)]


def probe_storage(storage: Storage) -> str:
    """Return the one format that claims the bytes, or raw. Raises AmbiguousFormat."""
    names = claims(storage)
    if len(names) > 1:
        raise AmbiguousFormat(
            f"the file looks like {' and like '.join(names)}",
            path=storage.name,
            hint=f"say which it is: --format {names[0]}",
        )
    return names[0] if names else "raw"


def image_file(path: str) -> str:
    """Return the file that stands for an image that is a directory, else ``path`` itself."""
    if os.path.isdir(path):
        for name in (known.bundle_file for known in FORMATS if known.bundle_file):
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
    return path


def probe_file(path: str) -> str:
    """Return the format of the image at ``path``. Raises ImageError."""
    with FileStorage(image_file(path)) as storage:
        return probe_storage(storage)
