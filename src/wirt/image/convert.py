"""Converting: one or more images become a new one of any format that can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import msgspec

from wirt.errors import ImageError, UnsupportedImage, UsageError
from wirt.image.base import (
    AllowLocalFiles,
    Budget,
    Checkable,
    CompressedWriter,
    DirectAllocator,
    HasBitmaps,
    Image,
    OpenGate,
    WritableImage,
)
from wirt.image.compressors import compressor
from wirt.image.concatenated import Concatenated
from wirt.image.create import create_image, remove_files
from wirt.image.expansion import refuse_expansion
from wirt.image.open import open_image
from wirt.image.progress import Progress, silent
from wirt.image.registry import find_format
from wirt.image.replacement import is_replaceable, replacing
from wirt.image.resume import Resumption
from wirt.image.storage.file import image_error
from wirt.image.stream import convert_to_stream, is_stream
from wirt.image.transfer import Transfer


class ConvertSettings(msgspec.Struct, frozen=True):
    """How to convert. The defaults make a new, sparse, independent image."""

    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Creation options of the target's format, as ``qemu-img -o``."""
    backing: str = ""
    """The target is an overlay of this image; only the source's first layer is copied."""
    backing_format: str = ""
    compressed: bool = False
    level: str = "normal"
    """``fast``, ``normal`` (as small as qemu-img's) or ``best``."""
    window_4k: bool = False
    """Keep deflate's window to 4 KiB, for old readers."""
    workers: int = 0
    """Threads that compress or decompress; 0 means one for each usable core."""
    zero_unit: int = 4096
    """Runs of at least so many zero bytes are not stored; 0 stores all."""
    into_existing: bool = False
    """Write into an image that exists (a device, for example) instead of making one."""
    target_is_zero: bool = False
    """The existing target reads as zeros everywhere."""
    offload: bool | None = None
    """Let the kernel copy: always, never, or where files can share blocks (None)."""
    bitmaps: bool = False
    skip_broken_bitmaps: bool = False
    salvage: bool = False
    """Store zeros for what cannot be read, instead of failing."""
    resume: bool = False
    """Keep what is done when interrupted, and go on from there the next time."""
    rate_limit: int = 0
    """Bytes per second at most; 0 is no limit."""
    budget: Budget = msgspec.field(default_factory=Budget)
    secret: bytes | None = None
    """Passphrase of an encrypted target."""
    gate: OpenGate = msgspec.field(default_factory=AllowLocalFiles)
    """What the target may name: its backing image and data file, which the caller chose."""


class Converted(msgspec.Struct, frozen=True):
    """What a conversion had to leave out."""

    unreadable: Sequence[tuple[int, int]] = ()
    """(offset, length) of what ``salvage`` stored as zeros."""
    skipped_bitmaps: Sequence[str] = ()


def convert(
    sources: Sequence[Image],
    target: str,
    format: str,  # noqa: A002 - the word of qemu-img and of the field
    settings: ConvertSettings | None = None,
    *,
    progress: Progress = silent,
) -> Converted:
    """Copy ``sources``, one behind the other, into an image at ``target``.

    A new image appears under its name when it is complete and durable; until then a file
    of that name stays as it was. A pipe is written front to back (raw and qcow2 only).
    Raises ImageError, UsageError.
    """
    settings = settings or ConvertSettings()
    source = sources[0] if len(sources) == 1 else Concatenated(sources)
    refuse_expansion(source, settings.budget)
    _refuse_impossible(source, format, settings)
    if is_stream(target):
        return _into_stream(source, target, format, settings, progress)
    if settings.resume:
        return _resumable(source, target, format, settings, progress)
    with _target(target, format, source.virtual_size, settings) as image:
        return copy_into(image, source, settings, progress=progress)


def copy_into(
    image: WritableImage, source: Image, settings: ConvertSettings, *, progress: Progress = silent
) -> Converted:
    """Copy ``source`` into a target that is open, and make it durable. Raises ImageError."""
    transfer = _transfer(source, image, settings, progress)
    # Ordering for power cuts is of no use in a file that nobody knows yet.
    unordered = isinstance(image, DirectAllocator) and not settings.into_existing
    with image.bulk_write() if unordered else nullcontext():  # type: ignore[attr-defined]
        transfer.run()
    return _completed(source, image, transfer, settings)


def _completed(
    source: Image, image: WritableImage, transfer: Transfer, settings: ConvertSettings
) -> Converted:
    skipped = _copy_bitmaps(source, image, settings) if settings.bitmaps else ()
    image.flush()
    return Converted(sorted(transfer.lost), skipped)


def _into_stream(
    source: Image, target: str, name: str, settings: ConvertSettings, progress: Progress
) -> Converted:
    if settings.compressed or settings.backing or settings.bitmaps or settings.into_existing:
        raise UsageError(
            "a pipe takes plain images: uncompressed, without backing image and bitmaps",
            hint="write to a file",
        )
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise image_error(error, target) from error
    try:
        convert_to_stream([source], fd, name, options=settings.options, progress=progress)
    finally:
        os.close(fd)
    return Converted()


def _resumable(
    source: Image, target: str, name: str, settings: ConvertSettings, progress: Progress
) -> Converted:
    companions = find_format(name).companions(target, source.virtual_size, settings.options)
    if companions or settings.into_existing or not is_replaceable(target):
        raise UsageError("only a new image in one file can be resumed")
    with replacing(target, keep_partial=True) as partial:
        record = Resumption(partial, source, name, _choices(settings))
        start = record.load()
        if not start:
            _create(partial, name, source.virtual_size, settings)
        with _opened(partial, name, source.virtual_size, settings) as image:
            if start and isinstance(image, Checkable):
                # What was written after the last record may be unused clusters now.
                image.check(repair="all")
            transfer = _transfer(source, image, settings, progress)
            transfer.checkpoint = record.checkpoint(image.flush)
            try:
                transfer.run(start)
            except BaseException:
                with suppress(ImageError):
                    record.save_last(image.flush)
                raise
            done = _completed(source, image, transfer, settings)
        record.forget()
    return done


def _choices(settings: ConvertSettings) -> dict[str, str]:
    """Return all that decides about the bytes of the target."""
    chosen = (settings.backing, settings.compressed, settings.level, settings.zero_unit)
    told = {key: text for key, text in settings.options.items() if not key.endswith("secret")}
    return {**told, "": repr(chosen)}


def _refuse_impossible(source: Image, name: str, settings: ConvertSettings) -> None:
    kinds = find_format(name).images
    if not any(issubclass(kind, WritableImage) for kind in kinds):
        raise UnsupportedImage(f"{name} images can be read but not written")
    if settings.compressed and not any(issubclass(kind, CompressedWriter) for kind in kinds):
        raise UnsupportedImage(f"{name} images cannot be written compressed")
    if settings.bitmaps and not isinstance(source, HasBitmaps):
        raise UsageError("only one qcow2 source has bitmaps to copy")
    if settings.target_is_zero and not settings.into_existing:
        raise UsageError("a new target is zero in any case", hint="leave target-is-zero out")


@contextmanager
def _target(path: str, name: str, size: int, settings: ConvertSettings) -> Iterator[WritableImage]:
    """Yield the open target; made anew, it takes its name at the end."""
    with ExitStack() as stack:
        if not settings.into_existing:
            path = stack.enter_context(new_target(path, name, size, settings))
        yield stack.enter_context(_opened(path, name, size, settings))


@contextmanager
def _opened(path: str, name: str, size: int, settings: ConvertSettings) -> Iterator[WritableImage]:
    with open_image(
        path,
        format=name,
        writable=True,
        gate=settings.gate,
        secret=settings.secret,
        budget=Budget(metadata_bytes=1 << 40),
    ) as image:
        if not isinstance(image, WritableImage):
            raise UnsupportedImage(f"this {name} image cannot be written", path=path)
        if image.virtual_size < size:
            raise UsageError(
                f"the target holds {image.virtual_size} bytes, the source {size}",
                hint="make it larger: wirt img resize",
            )
        yield image


@contextmanager
def new_target(path: str, name: str, size: int, settings: ConvertSettings) -> Iterator[str]:
    """Make an empty target and yield where it lies; at the end it takes its own name."""
    companions = find_format(name).companions(path, size, settings.options)
    if companions or not is_replaceable(path):
        # Several files cannot take their names at once, and a device has no other name.
        new = [file for file in (path, *companions) if not os.path.exists(file)]
        try:
            _create(path, name, size, settings)
            yield path
        except BaseException:
            remove_files(new)
            raise
        return
    with replacing(path) as partial:
        _create(partial, name, size, settings)
        yield partial


def _create(path: str, name: str, size: int, settings: ConvertSettings) -> None:
    create_image(
        path,
        name,
        size,
        backing=settings.backing,
        backing_format=settings.backing_format,
        options=settings.options,
    )


def _transfer(
    source: Image, image: WritableImage, settings: ConvertSettings, progress: Progress
) -> Transfer:
    compress = None
    if settings.compressed or (isinstance(image, CompressedWriter) and image.only_compressed):
        if not isinstance(image, CompressedWriter):
            raise UnsupportedImage("this image cannot be written compressed")
        compress = compressor(image.compression, level=settings.level, window_4k=settings.window_4k)
    zero = settings.target_is_zero if settings.into_existing else image.new_is_zero
    return Transfer(
        source,
        image,
        zero_unit=settings.zero_unit,
        writes_zeros=bool(settings.backing) or not zero,
        top_only=bool(settings.backing),
        compress=compress,
        workers=settings.workers or len(os.sched_getaffinity(0)),
        offload=settings.offload,
        salvage=settings.salvage,
        rate_limit=settings.rate_limit,
        progress=progress,
    )


def _copy_bitmaps(
    source: Image, target: WritableImage, settings: ConvertSettings
) -> tuple[str, ...]:
    """Copy the persistent bitmaps; return the names of broken ones that were left out."""
    if not isinstance(source, HasBitmaps) or not isinstance(target, HasBitmaps):
        raise UsageError("bitmaps can only be copied from qcow2 to qcow2")
    skipped = []
    for bitmap in source.bitmaps():
        if bitmap.in_use:
            if not settings.skip_broken_bitmaps:
                raise ImageError(
                    f"Cannot copy inconsistent bitmap '{bitmap.name}'",
                    hint="skip it with --skip-broken-bitmaps, or remove it from the source",
                )
            skipped.append(bitmap.name)
            continue
        target.bitmap_add(bitmap.name, granularity=bitmap.granularity, enabled=False)
        target.bitmap_merge(bitmap.name, source, bitmap.name)
        target.bitmap_enable(bitmap.name, enabled=bitmap.enabled)
    return tuple(skipped)
