"""The open gate of the command line: an image may name its neighbours, nothing else.

A person keeps overlays beside their base, and downloads images from strangers; both have
the same header. So what an image names is opened without asking where that tells nothing
that was not put beside it: see ``docs/adr/0004-open-gate.md``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from wirt.image.base import AllowLocalFiles, OpenGate


class Neighbours(OpenGate):
    """Open plain files beside the image that names them, or below that directory.

    ``allowed`` are files and directories that the user allows besides. Images below one of
    ``homes`` may name everything below the same one.
    """

    def __init__(self, allowed: Sequence[str] = (), homes: Sequence[str] = ()) -> None:
        self._allowed = [os.path.realpath(path) for path in allowed]
        self._homes = [os.path.realpath(path) for path in homes]

    def allows(self, name: str, *, role: str, referrer: str) -> bool:
        if not AllowLocalFiles().allows(name, role=role, referrer=referrer):
            return False
        here = os.path.dirname(os.path.realpath(referrer))
        named = os.path.join(os.path.dirname(referrer), name.removeprefix("file:"))
        path = os.path.realpath(named)
        if any(_lies_below(path, place) for place in self._allowed):
            return True
        for home in self._homes:
            if _lies_below(here, home):
                return _lies_below(path, home)
        return _is_neighbour(path, here, referrer)


def _lies_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _is_neighbour(path: str, here: str, referrer: str) -> bool:
    if not path.startswith(here.rstrip("/") + "/"):
        return False
    if any(part.startswith(".") for part in os.path.relpath(path, here).split("/")):
        return False  # ~/.ssh is below ~
    try:
        named, directory = os.stat(path), os.stat(here)
        owner = os.stat(referrer).st_uid
    except OSError:
        return True  # opening it says what is wrong
    if not stat.S_ISREG(named.st_mode):
        return False
    # Anybody may put an image into /tmp, beside a file of somebody else.
    return not directory.st_mode & stat.S_IWOTH or named.st_uid == owner
