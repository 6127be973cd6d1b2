"""Converting into a pipe: written once, front to back, with nothing on disk in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence

from wirt.errors import ImageIoError, UnsupportedImage
from wirt.image.base import Budget, ExtentKind, Image
from wirt.image.concatenated import Concatenated
from wirt.image.expansion import refuse_expansion
from wirt.image.extents import chain_extents
from wirt.image.pipeline import cut
from wirt.image.progress import Progress, silent
from wirt.image.storage.file import image_error

_CHUNK = 1 << 20
Write = Callable[[bytes | memoryview], None]


def is_stream(path: str) -> bool:
    """Return whether ``path`` can only be written front to back (a pipe, a terminal)."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def convert_to_stream(
    sources: Sequence[Image],
    fileno: int,
    format: str,  # noqa: A002 - the word of qemu-img and of the field
    *,
    options: Mapping[str, str] | None = None,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> None:
    """Write ``sources``, one behind the other, as a raw or qcow2 image to a descriptor.

    Raises ImageError, also when the reader goes away; UsageError for options.
    """
    source = sources[0] if len(sources) == 1 else Concatenated(sources)
    refuse_expansion(source, budget or Budget())

    def write(data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fileno, view) :]
            except BrokenPipeError as error:
                raise ImageIoError("whoever was to read the image has gone away") from error
            except OSError as error:
                raise image_error(error, "the stream") from error

    if format == "raw":
        _write_raw(source, write, progress)
    elif format == "qcow2":
        from wirt.image.formats.qcow2.stream import write_stream

        write_stream(source, options or {}, write, progress)
    else:
        raise UnsupportedImage(
            f"{format} cannot be written as a stream", hint="write to a file, or choose raw, qcow2"
        )


def _write_raw(source: Image, write: Write, progress: Progress) -> None:
    zeros = bytes(_CHUNK)
    for extent in chain_extents(source):
        for at, end in cut(extent.offset, extent.end, _CHUNK):
            if extent.kind is ExtentKind.DATA:
                write(source.pread(at, end - at))
            else:
                write(memoryview(zeros)[: end - at])
            progress(end, source.virtual_size)
