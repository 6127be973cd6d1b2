"""Copying a run of blocks of one disk into a new image."""

from __future__ import annotations

from wirt.errors import UsageError
from wirt.image.base import Budget, Image
from wirt.image.convert import ConvertSettings, convert
from wirt.image.part import Part
from wirt.image.progress import Progress, silent


def dd(
    source: Image,
    target: str,
    format: str,  # noqa: A002 - the word of qemu-img and of the field
    *,
    block_size: int = 512,
    count: int | None = None,
    skip: int = 0,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> None:
    """Make an image of the blocks from ``skip`` up to ``count``, of ``block_size`` bytes each.

    ``count`` is counted from the beginning of the source, as ``qemu-img dd`` does: what is
    skipped is part of it. Raises ImageError, UsageError.
    """
    if block_size <= 0 or skip < 0 or (count is not None and count < 0):
        raise UsageError("block size, count and skip cannot be negative, nor blocks empty")
    end = source.virtual_size
    if count is not None:
        end = min(end, count * block_size)
    start = min(skip * block_size, end)
    settings = ConvertSettings(budget=budget or Budget())
    convert([Part(source, start, end)], target, format, settings, progress=progress)
