"""Compressing one cluster: who does it, by codec and level.

``deflate`` is a raw stream of RFC 1951, ``zlib`` the same in the wrapper of RFC 1950,
``zstd`` a frame of RFC 8878. The fastest library that is installed works; each has a
fallback in the standard library, except zstd.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable

from wirt.errors import MissingDependency, UsageError

Compress = Callable[[bytes | memoryview], bytes]
"""Any number of threads may call it at once."""

LEVELS = ("fast", "normal", "best")
_LIBDEFLATE = {"normal": 1, "best": 6}
_ZLIB = {"fast": 1, "normal": 6, "best": 9}
_ZSTD = {"fast": 1, "normal": 2, "best": 12}
_WBITS = {"deflate": -15, "zlib": 15}


def compressor(codec: str, *, level: str = "normal", window_4k: bool = False) -> Compress:
    """Return the function that compresses one cluster.

    ``normal`` makes about as small a file as qemu-img does. ``window_4k`` keeps deflate's
    window to 4 KiB, for readers that cannot look further back. Raises UsageError for an
    unknown codec or level, MissingDependency without zstandard.
    """
    if level not in LEVELS:
        raise UsageError(f"unknown compression level {level[:20]!r}", hint=", ".join(LEVELS))
    if codec == "zstd":
        return _zstd(_ZSTD[level])
    if codec not in _WBITS:
        raise UsageError(f"unknown compression {codec[:20]!r}")
    if window_4k:
        return _zlib(level, 12 if _WBITS[codec] > 0 else -12)
    if level == "fast":
        return _isal(codec) or _zlib(level, _WBITS[codec])
    return _libdeflate(codec, _LIBDEFLATE[level]) or _zlib(level, _WBITS[codec])


def _libdeflate(codec: str, level: int) -> Compress | None:
    try:
        import deflate
    except ImportError:
        return None
    function = deflate.deflate_compress if codec == "deflate" else deflate.zlib_compress
    return lambda plain: bytes(function(plain, level))


def _isal(codec: str) -> Compress | None:
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    wbits = _WBITS[codec]
    return lambda plain: isal_zlib.compress(plain, level=1, wbits=wbits)


def _zlib(level: str, wbits: int) -> Compress:
    number = _ZLIB[level]

    def compress(plain: bytes | memoryview) -> bytes:
        stream = zlib.compressobj(number, zlib.DEFLATED, wbits)
        return stream.compress(plain) + stream.flush()

    return compress


def _zstd(level: int) -> Compress:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependency(
            "zstd compression needs the Python module zstandard", hint="pip install zstandard"
        ) from error
    # A context serves one thread at a time, and is costly to make for each cluster.
    contexts = threading.local()

    def compress(plain: bytes | memoryview) -> bytes:
        if not hasattr(contexts, "zstd"):
            contexts.zstd = zstandard.ZstdCompressor(level=level, write_content_size=True)
        packed: bytes = contexts.zstd.compress(plain)
        return packed

    return compress
