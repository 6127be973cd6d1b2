"""vvfat: a directory of the host as a FAT disk, named ``fat:DIRECTORY`` as in QEMU.

``fat:[floppy:][12:|16:|32:][rw:][label=NAME:]DIRECTORY``. Read-only unless ``rw`` stands there;
even then nothing reaches the directory before ``apply_changes`` is called.
"""

from wirt.image.formats.vvfat.format import FORMAT
from wirt.image.formats.vvfat.image import VvfatImage
from wirt.image.formats.vvfat.write_back import Changes, apply_changes, changes

__all__ = ["FORMAT", "Changes", "VvfatImage", "apply_changes", "changes"]
