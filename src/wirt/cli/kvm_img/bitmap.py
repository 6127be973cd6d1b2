"""``kvm-img bitmap``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from msgspec.structs import replace

from wirt.cli.kvm_img.command import OPEN, opening, read_words
from wirt.cli.kvm_img.failure import Failure, failure_of
from wirt.cli.kvm_img.opening import open_named
from wirt.cli.kvm_img.sizes import size_argument
from wirt.errors import NotFound, WirtError
from wirt.image.base import HasBitmaps, Image

_ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")


def run(words: Sequence[str]) -> int:
    long = {
        **{action: action for action in _ACTIONS},
        "merge": "merge:",
        "granularity": "g:",
        "source-file": "b:",
        "source-format": "F:",
        **OPEN,
    }
    parsed = read_words(words, "b:f:F:g:h", long)
    granularity = size_argument("granularity", parsed.last("g") or "0")
    actions = [pair for pair in parsed.options if pair[0] in _ACTIONS]
    if not actions:
        raise Failure(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
        )
    source = parsed.last("b")
    if granularity and not parsed.has("add"):
        raise Failure("granularity only supported with --add")
    if parsed.has("F") and source is None:
        raise Failure("-F only supported with -b")
    if source is not None and not parsed.has("merge"):
        raise Failure("Merge bitmap source file only supported with --merge")
    if len(parsed.operands) != 2:
        raise Failure("Expecting filename and bitmap name")
    name, bitmap = parsed.operands
    how = opening(parsed, writable=True, with_backing=False)
    with ExitStack() as stack:
        image = stack.enter_context(open_named(name, parsed.last("f"), how)).image
        other = image
        if source is not None:
            look = replace(how, writable=False, image_opts=False)
            other = stack.enter_context(open_named(source, parsed.last("F"), look)).image
        for action, value in actions:
            _act(image, action, bitmap, granularity, other, value)
    return 0


def _act(image: Image, action: str, name: str, granularity: int, other: Image, source: str) -> None:
    failed = f"Operation {action} on bitmap {name} failed: "
    if not isinstance(image, HasBitmaps) or not isinstance(other, HasBitmaps):
        raise Failure(f"{failed}Can't store persistent bitmaps to #block0: Operation not supported")
    if action == "add" and not image.can_have_bitmaps:
        raise Failure(
            f"{failed}Can't make bitmap '{name}' persistent in '#block0': Cannot store dirty "
            "bitmaps in qcow2 v2 files"
        )
    if action == "merge" and image.virtual_size != other.virtual_size:
        raise Failure(
            f"{failed}Bitmaps are of different sizes (destination size is {image.virtual_size}, "
            f"source size is {other.virtual_size}) and can't be merged"
        )
    try:
        if action == "add":
            image.bitmap_add(name, granularity=granularity)
        elif action == "remove":
            image.bitmap_remove(name)
        elif action == "clear":
            image.bitmap_clear(name)
        elif action == "merge":
            image.bitmap_merge(name, other, source)
        else:
            image.bitmap_enable(name, enabled=action == "enable")
    except NotFound as error:
        missing = source if action == "merge" and _has(image, name) else name
        raise Failure(f"{failed}Dirty bitmap '{missing}' not found") from error
    except WirtError as error:
        raise failure_of(error).prefixed(failed) from error


def _has(image: HasBitmaps, name: str) -> bool:
    return any(bitmap.name == name for bitmap in image.bitmaps())
