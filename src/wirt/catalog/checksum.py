"""Checksums of downloads: as given, or found in a list such as SHA256SUMS."""

from __future__ import annotations

import re
from typing import NamedTuple

from wirt.errors import NotFound, UsageError

_ALGORITHM = {64: "sha256", 128: "sha512"}
_GNU_LINE = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *](.+)")
_BSD_LINE = re.compile(r"SHA(?:256|512) \((.+)\) = ([0-9a-fA-F]{64}|[0-9a-fA-F]{128})")


class Checksum(NamedTuple):
    """An algorithm that hashlib knows, and the hex digest in lower case."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def parse_checksum(text: str) -> Checksum:
    """Return ``sha256:HEX``, ``sha512:HEX`` or bare hex digits. Raises UsageError."""
    algorithm, _, digest = text.strip().lower().rpartition(":")
    known = _ALGORITHM.get(len(digest), "")
    if not known or algorithm not in {"", known} or not re.fullmatch(r"[0-9a-f]+", digest):
        raise UsageError(
            f"{text[:40]!r} is not a checksum", hint="write sha256:HEX, sha512:HEX, or name a list"
        )
    return Checksum(known, digest)


def find_checksum(listing: str, name: str) -> Checksum:
    """Return the checksum of the file ``name`` in the text of a checksum list.

    Lines are those of sha256sum and sha512sum, or their ``--tag`` form. Raises NotFound.
    """
    for line in listing.splitlines():
        gnu, bsd = _GNU_LINE.fullmatch(line.strip()), _BSD_LINE.fullmatch(line.strip())
        if gnu and gnu[2].rpartition("/")[2] == name:
            return Checksum(_ALGORITHM[len(gnu[1])], gnu[1].lower())
        if bsd and bsd[1].rpartition("/")[2] == name:
            return Checksum(_ALGORITHM[len(bsd[2])], bsd[2].lower())
    raise NotFound(
        f"the list of checksums does not name {name[:80]!r}", hint="is it the list of this file?"
    )
