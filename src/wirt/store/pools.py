"""Pools: how many paused forks of a template are to be ready. See ``docs/adr/0008-pools.md``.

A pool is a record; its machines name it in theirs (``Record.pool``) until somebody takes them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import msgspec

from wirt.errors import NotFound, WirtError
from wirt.store.atomic import sync_directory
from wirt.store.layout import Home, private_directory
from wirt.store.locks import command_lock, try_lock
from wirt.store.record_file import VERSION, names_in, read_file, replace_file

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_LONGEST_FILL = 600.0


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """``fingerprint`` and ``kind`` are those of the template; ``size`` machines shall wait."""

    version: int = VERSION
    fingerprint: str
    kind: str
    image: str
    size: int


def pool_names(home: Home) -> list[str]:
    """Return the fingerprints of all pools."""
    return names_in(home.pools, _FINGERPRINT)


def read_pool(home: Home, fingerprint: str) -> Pool:
    """Return a pool. Raises NotFound, HostError for a record that is damaged."""
    path = home.pool(fingerprint)
    pool = read_file(path, Pool, cure=f"rm {path}")
    if pool is None:
        raise NotFound("there is no such pool", hint="wirt pool")
    return pool


def pools(home: Home) -> list[Pool]:
    """Return all pools that can be read."""
    found = []
    for name in pool_names(home):
        with contextlib.suppress(WirtError):
            found.append(read_pool(home, name))
    return found


def write_pool(home: Home, pool: Pool) -> None:
    """Make a pool, or change its size; the caller holds its lock."""
    replace_file(home.pool(pool.fingerprint), pool)


def remove_pool(home: Home, fingerprint: str) -> None:
    """Remove a pool, whose lock the caller holds; its machines are the caller's to remove."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(home.pool(fingerprint))
        sync_directory(home.pools)


@contextlib.contextmanager
def changing(home: Home, fingerprint: str) -> Iterator[None]:
    """Hold the lock of a pool; waits for who fills it. Raises Busy."""
    private_directory(home.pools)
    os.close(os.open(home.pool_lock(fingerprint), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with command_lock(home.pool_lock(fingerprint), timeout=_LONGEST_FILL):
        yield


@contextlib.contextmanager
def filling(home: Home, fingerprint: str) -> Iterator[bool]:
    """Hold the lock of a pool; False if somebody fills or changes it just now."""
    private_directory(home.pools)
    lock = try_lock(home.pool_lock(fingerprint))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)
