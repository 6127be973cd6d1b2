"""The names of vvfat disks, and opening them."""

from __future__ import annotations

import os

import msgspec

from wirt.errors import ImageAccessDenied, ImageIoError, UnsupportedImage, UsageError
from wirt.image.base import Image, NamedFormat, OpenOptions, Storage
from wirt.image.formats.vvfat.image import VvfatImage
from wirt.image.formats.vvfat.layout import lay_out
from wirt.image.formats.vvfat.tree import scan

_DEFAULT_LABEL = "WIRT VVFAT"


class Name(msgspec.Struct, frozen=True):
    """What ``fat:floppy:rw:DIRECTORY`` asks for."""

    directory: str
    bits: int = 0
    floppy: bool = False
    writable: bool = False
    label: str = _DEFAULT_LABEL


def parse_name(name: str) -> Name:
    """Take a ``fat:`` name apart. Raises UsageError."""
    rest = name.removeprefix("fat:")
    bits, floppy, writable, label = 0, False, False, _DEFAULT_LABEL
    while True:
        word, colon, behind = rest.partition(":")
        if not colon or "/" in word:
            break
        if word in {"12", "16", "32"}:
            bits = int(word)
        elif word == "floppy":
            floppy = True
        elif word == "rw":
            writable = True
        elif word.startswith("label="):
            label = word.removeprefix("label=")
        else:
            break
        rest = behind
    if not rest:
        raise UsageError(f"{name!r} names no directory", hint="fat:DIRECTORY")
    return Name(rest, bits, floppy, writable, label)


class VvfatFormat(NamedFormat):
    name = "vvfat"
    prefix = "fat:"
    images = (VvfatImage,)

    def probe(self, storage: Storage) -> bool:
        """No file is of this format: it is named ``fat:DIRECTORY``."""
        return False

    def open(self, storage: Storage, options: OpenOptions) -> Image:
        raise UnsupportedImage("a vvfat disk is named fat:DIRECTORY", path=storage.name)

    def open_name(self, name: str, options: OpenOptions) -> VvfatImage:
        wanted = parse_name(name)
        if not os.path.isdir(wanted.directory):
            raise ImageIoError("there is no such directory", path=wanted.directory)
        if options.writable and not wanted.writable:
            raise ImageAccessDenied(
                "the directory is shown read-only", path=wanted.directory, hint="fat:rw:DIRECTORY"
            )
        tree = scan(wanted.directory)
        layout = lay_out(
            tree,
            bits=wanted.bits,
            floppy=wanted.floppy,
            label=wanted.label,
            metadata_bytes=options.budget.metadata_bytes,
        )
        return VvfatImage(tree, layout, writable=options.writable)


FORMAT = VvfatFormat()
