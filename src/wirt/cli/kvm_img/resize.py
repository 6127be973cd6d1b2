"""``kvm-img resize``."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.command import OPEN, opening, read_words
from wirt.cli.kvm_img.creation import SIZE, Option
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of
from wirt.cli.kvm_img.opening import Opened, open_named
from wirt.errors import WirtError
from wirt.image.base import Resizable

_MODES = frozenset({"off", "metadata", "falloc", "full"})
_LONG = {"preallocation": "preallocation:", "shrink": "shrink", **OPEN}


def run(words: Sequence[str]) -> int:
    if len(words) < 2:
        raise Misuse("Not enough arguments")
    # Taken first, so that -1G is no option.
    *words, size = words
    parsed = read_words(words, "f:hq", _LONG)
    mode = parsed.last("preallocation") or "off"
    if mode not in _MODES:
        raise Failure(f"Invalid preallocation mode '{mode}'")
    if len(parsed.operands) != 1:
        raise Misuse("Expecting image file name and size")
    sign = size[0] if size[:1] in {"+", "-"} else ""
    amount = int(Option("size", SIZE, "").normal(size.removeprefix(sign) if sign else size))
    how = opening(parsed, writable=True)
    with open_named(parsed.operands[0], parsed.last("f"), how) as opened:
        _resize(opened, sign, amount, mode, shrink=parsed.has("shrink"))
    if not parsed.has("q"):
        print("Image resized.")
    return 0


def _resize(opened: Opened, sign: str, amount: int, mode: str, *, shrink: bool) -> None:
    image = opened.image
    now = image.virtual_size
    size = {"+": now + amount, "-": now - amount}.get(sign, amount)
    if size <= 0:
        raise Failure("New image size must be positive")
    if size <= now and mode != "off":
        raise Failure("Preallocation can only be used for growing images")
    if size < now and not shrink:
        raise _Shrinks
    if not isinstance(image, Resizable):
        raise Failure("Image format driver does not support resize")
    try:
        image.resize(size, preallocation=mode)
    except WirtError as error:
        raise failure_of(error) from error


class _Shrinks(Failure):
    """Shrinking needs consent."""

    def __init__(self) -> None:
        super().__init__(
            "Use the --shrink option to perform a shrink operation.\n"
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. "
            "Before performing such an operation, make sure there is no important data there."
        )
