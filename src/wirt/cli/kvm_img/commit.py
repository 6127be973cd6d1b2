"""``kvm-img commit``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec.structs import replace

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, one_file, opening, read_words
from wirt.cli.kvm_img.failure import Failure, failure_of
from wirt.cli.kvm_img.naming import beside
from wirt.cli.kvm_img.opening import Opened, full_backing_name, open_named
from wirt.cli.kvm_img.progress import ProgressLine
from wirt.cli.kvm_img.sizes import size_argument
from wirt.errors import WirtError
from wirt.image.base import Overlay, Resizable, WritableImage
from wirt.image.commit import write_down


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "f:ht:b:dpqr:", OPEN)
    rate = size_argument("rate limit", parsed.last("r") or "0")
    name = one_file(parsed)
    check_cache(parsed.last("t"))
    base = parsed.last("b")
    how = opening(parsed, writable=True)
    with open_named(name, parsed.last("f"), replace(how, writable=False)) as opened:
        depth = _depth(opened, name, base)
    quiet = parsed.has("q")
    with open_named(name, parsed.last("f"), replace(how, writes_below=depth)) as opened:
        progress = ProgressLine(shown=parsed.has("p") and not quiet)
        try:
            _commit(opened, depth, rate, progress)
            progress.complete()
            progress.end()
            if base is None and not parsed.has("d") and isinstance(opened.image, Overlay):
                opened.image.make_empty()
                opened.image.flush()
        except WirtError as error:
            raise failure_of(error) from error
    if not quiet:
        print("Image committed.")
    return 0


def _depth(opened: Opened, name: str, base: str | None) -> int:
    """Return how far down the chain the image to write lies. Raises Failure."""
    if base is None:
        if opened.backing is None:
            raise Failure("Image does not have a backing file")
        return 1
    depth, layer = 0, opened
    while layer.backing is not None:
        depth += 1
        stored = layer.image.info().backing_name
        below = full_backing_name(layer, stored)
        if base == stored or _same_file(beside(layer.path, base), below):
            return depth
        layer = layer.backing
    raise Failure(f"Did not find '{base}' in the backing chain of '{name}'")


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _commit(opened: Opened, depth: int, rate: int, progress: ProgressLine) -> None:
    image, target = opened.image, opened.image
    for _ in range(depth):
        if target.backing is None:
            raise Failure("Image does not have a backing file")
        target = target.backing
    if not isinstance(image, WritableImage) or not isinstance(target, WritableImage):
        raise Failure(f"{target.format_name} images cannot be written")
    if target.virtual_size < image.virtual_size:
        if not isinstance(target, Resizable):
            raise Failure("Image format driver does not support resize")
        target.resize(image.virtual_size)
    write_down(image, target, rate_limit=rate, progress=progress)
