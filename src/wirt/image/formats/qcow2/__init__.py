"""The qcow2 format, versions 2 and 3. ``FORMAT`` is its entry in the registry."""

from __future__ import annotations

from wirt.image.base import Format


def __getattr__(name: str) -> Format:
    """Import what opens images when it is asked for: who only creates one does without."""
    if name != "FORMAT":
        raise AttributeError(name)
    from wirt.image.formats.qcow2.format import FORMAT

    return FORMAT
