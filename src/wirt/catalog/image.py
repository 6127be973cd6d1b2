"""The record of a guest image: what it is, how it starts, where it came from."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import msgspec

from wirt.errors import CorruptImage, UsageError
from wirt.typed_json import decode

RECORD_VERSION = 1
# What an emulated processor gains nothing by: mitigations of hardware's faults, clearing memory
# that the host gave zeroed, and measuring at every switch of tasks what it is slow by (PSI). To
# come before a command line, under TCG only.
TCG_ARGUMENTS = "mitigations=off init_on_alloc=0 psi=0"
# To look every two seconds at drives whose medium can change, as distributions let udev set it:
# a guest that does not look keeps a disc that somebody wants back.
REMOVABLE_ARGUMENTS = "block.events_dfl_poll_msecs=2000"
_NAME = re.compile(r"[a-z0-9][a-z0-9._+:-]{0,79}")


class Kind(StrEnum):
    BUILT = "built"
    PULLED = "pulled"


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class GuestImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One image of the catalog, as its file ``image.json`` describes it.

    File names are relative to the image's directory. An image never changes after it was
    published: a rebuild is a new image with the same name.
    """

    version: int = RECORD_VERSION
    name: str
    id: str
    """Hex fingerprint: unique for each build, the SHA-256 of the disk for a pulled image."""
    fingerprint: str
    """What the image was made of: equal recipes (or downloads) have equal fingerprints."""
    kind: Kind
    disk: str
    format: str
    """Format of the disk file, as ``qemu-img -f`` names it."""
    virtual_size: int
    allocated_size: int
    kernel: str = ""
    """Kernel for direct boot; empty: the firmware boots from the disk."""
    initrd: str = ""
    command_line: str = ""
    firmware: Firmware = Firmware.BIOS
    user: str = ""
    """The account for people; empty when the image does not tell."""
    agent: bool = False
    """Whether the QEMU guest agent is inside."""
    helper: bool = False
    """Whether wirt's own guest helper is inside."""
    created: int
    """Seconds since 1970."""
    origin: str
    """The recipe in one line, or the address and checksum."""

    def pack(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, path: str = "") -> GuestImage:
        """Return the record in ``data``; raises CorruptImage for anything else."""
        try:
            image = decode(data, cls)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptImage(f"not an image record: {error}", path=path) from error
        if image.version != RECORD_VERSION:
            raise CorruptImage(
                f"image record of version {image.version}, this wirt reads {RECORD_VERSION}",
                path=path,
                hint="use the wirt that made the image, or remove and build it again",
            )
        return image


class StoredImage(msgspec.Struct, frozen=True):
    """A GuestImage and the directory that holds its files."""

    record: GuestImage
    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / self.record.disk

    @property
    def kernel(self) -> Path | None:
        return self.directory / self.record.kernel if self.record.kernel else None

    @property
    def initrd(self) -> Path | None:
        return self.directory / self.record.initrd if self.record.initrd else None


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be an image's: ``debian:12``, ``my-image_2.0``."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} cannot be the name of an image",
            hint="lower-case letters, digits and . _ + : - , at most 80, starting with a letter "
            "or digit",
        )
