"""Compressed disk images, unpacked within a budget; holes stay holes."""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from wirt.catalog.download import free_space
from wirt.errors import CorruptImage, NoSpace, OutOfBounds
from wirt.units import GIB, MIB, format_size

MAX_EXPANDED = 1024 * GIB
_CHUNK = MIB
_BLOCK = 64 << 10
_MARGIN = 64 * MIB
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_XZ_MEMORY = 256 * MIB


def compression(path: Path) -> str:
    """Return ``gzip``, ``xz``, ``zstd``, or nothing for a file that is not compressed."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def unpack(
    source: Path,
    target: Path,
    *,
    budget: int = MAX_EXPANDED,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write what ``source`` unpacks to (itself, if not compressed) into ``target``.

    ``progress`` is told the bytes read from ``source``. Raises CorruptImage, OutOfBounds
    beyond ``budget`` bytes, NoSpace.
    """
    kind = compression(source)
    with source.open("rb") as file, target.open("xb") as out:
        size = 0
        for data in _expanded(file, kind, os.fspath(source), progress):
            size += len(data)
            if size > budget:
                raise OutOfBounds(
                    f"the file unpacks to more than {format_size(budget)}", path=os.fspath(source)
                )
            _write_sparse(out, data)
        out.truncate(size)


def _expanded(
    file: IO[bytes], kind: str, path: str, progress: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield pieces of at most 1 MiB; several compressed streams may follow each other."""
    if not kind:
        while data := file.read(_CHUNK):
            yield data
            progress(file.tell())
        return
    pending = b""
    try:
        while pending := pending or file.read(_CHUNK):
            stream = _Stream(kind)
            while not stream.ended:
                if not pending and not (pending := file.read(_CHUNK)):
                    raise CorruptImage(f"the {kind} data ends too early", path=path)
                yield from stream.feed(pending)
                pending = stream.rest
                progress(file.tell())
            pending = pending.lstrip(b"\0") if kind == "xz" else pending
            if kind == "gzip" and pending and not pending.startswith(b"\x1f"):
                return
    except (lzma.LZMAError, zlib.error) as error:
        raise CorruptImage(f"the {kind} data is damaged: {error}", path=path) from error


class _Stream:
    """One compressed stream, fed with bytes; never holds more than 1 MiB of its output."""

    def __init__(self, kind: str) -> None:
        self.rest = b""
        self.ended = False
        self._kind = kind
        self._decoder = _decoder(kind)

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._kind == "gzip":
            yield from self._feed_gzip(data)
        elif self._kind == "xz":
            yield from self._feed_xz(data)
        else:
            yield from self._feed_zstd(data)

    def _feed_gzip(self, data: bytes) -> Iterator[bytes]:
        while data and not self._decoder.eof:
            yield self._decoder.decompress(data, _CHUNK)
            data = self._decoder.unconsumed_tail
        while not self._decoder.eof and (more := self._decoder.decompress(b"", _CHUNK)):
            yield more
        self.ended, self.rest = self._decoder.eof, self._decoder.unused_data

    def _feed_xz(self, data: bytes) -> Iterator[bytes]:
        yield self._decoder.decompress(data, _CHUNK)
        while not self._decoder.eof and not self._decoder.needs_input:
            yield self._decoder.decompress(b"", _CHUNK)
        self.ended, self.rest = self._decoder.eof, self._decoder.unused_data

    def _feed_zstd(self, data: bytes) -> Iterator[bytes]:
        # A block of zstd expands to 128 KiB at most: small bites bound the output.
        import zstandard

        for start in range(0, len(data), 1 << 10):
            try:
                piece = self._decoder.decompress(data[start : start + (1 << 10)])
            except zstandard.ZstdError as error:
                raise lzma.LZMAError(str(error)) from error
            yield piece
            if self._decoder.eof:
                self.ended = True
                self.rest = self._decoder.unused_data + data[start + (1 << 10) :]
                return
        self.rest = b""


def _decoder(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if kind == "xz":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def _write_sparse(out: IO[bytes], data: bytes) -> None:
    if free_space(Path(out.name).parent) < len(data) + _MARGIN:
        raise NoSpace(f"{Path(out.name).parent} is full", hint="free space, then try again")
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        if block.count(0) == len(block):
            out.seek(len(block), os.SEEK_CUR)
        else:
            out.write(block)
