"""``wirt pull``: a published image, checked before anybody can start it."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from wirt.catalog.catalog import Catalog
from wirt.catalog.checksum import Checksum, find_checksum, parse_checksum
from wirt.catalog.diskfacts import inspect_disk
from wirt.catalog.download import MAX_DOWNLOAD, Progress, discard, download, fetch_text
from wirt.catalog.image import Firmware, GuestImage, Kind, StoredImage, check_name
from wirt.catalog.unpack import MAX_EXPANDED, unpack
from wirt.errors import CorruptImage, HostError, ImageError, NotFound
from wirt.units import MIB

_MAX_LIST = 4 * MIB
_SUFFIXES = re.compile(r"(\.(qcow2|raw|img|gz|xz|zst))+$")


class _Claims(NamedTuple):
    """What the caller says of an image, beside its content."""

    name: str
    format: str
    firmware: Firmware | None
    user: str
    agent: bool
    source: str
    checksum: Checksum


def pull_image(
    catalog: Catalog,
    source: str,
    *,
    name: str = "",
    checksum: str = "",
    format: str = "",  # noqa: A002 - qemu-img's word
    firmware: Firmware | None = None,
    user: str = "",
    agent: bool = False,
    limit: int = MAX_DOWNLOAD,
    budget: int = MAX_EXPANDED,
    tls: ssl.SSLContext | None = None,
    progress: Progress = lambda _done, _total: None,
    step: Callable[[str], None] = lambda _: None,
) -> StoredImage:
    """Take the image at ``source``, an http(s) address or a file, into the catalog.

    ``checksum`` is ``sha256:HEX``, ``sha512:HEX``, bare hex digits, or the address or path of
    a list such as SHA256SUMS; it applies to the file as published. gzip, xz and zstd are
    unpacked to at most ``budget`` bytes. ``format`` and ``firmware`` overrule what the file
    itself tells; ``user`` and ``agent`` say what is known of the guest inside. An image with
    the same content and name is returned as it is.

    An interrupted download is kept and continued by the next call. Raises UsageError,
    NotFound, HostError, NoSpace, ProtocolError and the image errors; CorruptImage when the
    checksum does not match.
    """
    file_name = _file_name(source)
    name = name.lower() or default_name(file_name)
    check_name(name)
    expected = _expected(checksum, file_name, tls)
    key = hashlib.sha256(source.encode()).hexdigest()
    with catalog.making(key, lambda: step("waiting for another pull of this image")):
        catalog.sweep()
        if _is_address(source):
            step(f"downloading {file_name}")
            fetched = catalog.root / f".part-{key[:16]}"
            download(source, fetched, limit=limit, tls=tls, progress=progress)
        else:
            fetched = _local(source)
        step("checking")
        found = file_digest(fetched, expected.algorithm if expected else "sha256")
        if expected and found != expected:
            if _is_address(source):
                discard(fetched)
            raise CorruptImage(
                f"the checksum does not match: expected {expected}, found {found}",
                path=source,
                hint="the file was changed or damaged on its way: get it again, or ask "
                "its publisher",
            )
        image = _take(
            catalog,
            fetched,
            step=step,
            budget=budget,
            claims=_Claims(name, format, firmware, user, agent, source, found),
        )
        if _is_address(source):
            discard(fetched)
        return image


def default_name(file_name: str) -> str:
    """Return the name an image gets from its file: lower case, without endings."""
    stem = _SUFFIXES.sub("", file_name.lower())
    return re.sub(r"[^a-z0-9._+-]+", "-", stem).strip("-.")[:80] or "image"


def file_digest(path: Path, algorithm: str) -> Checksum:
    """Return the checksum of the file at ``path``."""
    with path.open("rb") as file:
        return Checksum(algorithm, hashlib.file_digest(file, algorithm).hexdigest())


def _take(
    catalog: Catalog,
    fetched: Path,
    *,
    step: Callable[[str], None],
    budget: int,
    claims: _Claims,
) -> StoredImage:
    with catalog.draft() as draft:
        step("storing")
        incoming = draft.scratch("incoming")
        unpack(fetched, incoming, budget=budget)
        try:
            facts = inspect_disk(incoming, format=claims.format)
        except ImageError as error:
            error.path = claims.source
            raise
        disk = f"disk.{facts.format}"
        if facts.format == "raw":
            os.truncate(incoming, facts.virtual_size)
        incoming.rename(draft.path(disk))
        content = file_digest(draft.directory / disk, "sha256").digest
        made = catalog.find_made(content, claims.name)
        if made:
            return made
        return catalog.publish(
            draft,
            GuestImage(
                name=claims.name,
                id=hashlib.sha256(f"{claims.name} {content}".encode()).hexdigest(),
                fingerprint=content,
                kind=Kind.PULLED,
                disk=disk,
                format=facts.format,
                virtual_size=facts.virtual_size,
                allocated_size=0,
                firmware=claims.firmware or facts.firmware,
                user=claims.user,
                agent=claims.agent,
                created=int(time.time()),
                origin=f"{claims.source} {claims.checksum}",
            ),
        )


def _expected(checksum: str, file_name: str, tls: ssl.SSLContext | None) -> Checksum | None:
    if not checksum:
        return None
    if _is_address(checksum):
        return find_checksum(fetch_text(checksum, tls=tls), file_name)
    if Path(checksum).is_file():
        with Path(checksum).open("rb") as file:
            return find_checksum(file.read(_MAX_LIST).decode(errors="replace"), file_name)
    return parse_checksum(checksum)


def _local(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise NotFound(f"there is no file {source}", hint="name a file or an http(s) address")
    if not path.is_file():
        raise HostError(f"{source} is not a regular file")
    if not os.access(path, os.R_OK):
        raise HostError(f"{source} may not be read", hint="check its owner and mode")
    return path


def _is_address(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _file_name(source: str) -> str:
    path = unquote(urlsplit(source).path) if _is_address(source) else source
    return path.rstrip("/").rpartition("/")[2] or "image"
