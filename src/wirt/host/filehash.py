"""The hash of a large file that seldom changes: computed once for each version of it."""

from __future__ import annotations

import os
import zlib

import msgspec

from wirt.host import cache


class _Known(msgspec.Struct, frozen=True):
    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str


def sha256_of(path: str, cache_dir: str) -> str:
    """Return the SHA-256 of a file, hexadecimal. Raises OSError."""
    info = os.stat(path)
    cached = os.path.join(cache_dir, f"sha256-{zlib.crc32(path.encode()):08x}.json")
    identity = (path, info.st_size, info.st_mtime_ns, info.st_ino)
    known = cache.read(cached, _Known)
    if known is not None and (known.path, known.size, known.mtime_ns, known.inode) == identity:
        return known.sha256
    import hashlib

    with open(path, "rb") as file:
        fresh = _Known(*identity, hashlib.file_digest(file, "sha256").hexdigest())
    cache.write(cached, fresh)
    return fresh.sha256
