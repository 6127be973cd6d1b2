"""The qcow2 format, versions 2 and 3. ``FORMAT`` is its entry in the registry."""

from wirt.image.formats.qcow2.format import FORMAT

__all__ = ["FORMAT"]
