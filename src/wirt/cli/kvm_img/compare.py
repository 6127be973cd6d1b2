"""``kvm-img compare``. Exit codes: 0 the same, 1 different, 2 and more an error."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, SHARE, opening, read_words
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of
from wirt.cli.kvm_img.opening import open_named
from wirt.cli.kvm_img.progress import ProgressLine
from wirt.errors import WirtError
from wirt.image.base import Budget
from wirt.image.compare import Comparison, compare

_TROUBLE, _UNREADABLE = 2, 4


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "hf:F:T:pqsU", {**OPEN, **SHARE})
    if len(parsed.operands) != 2:
        raise Misuse("Expecting two image file names")
    first, second = parsed.operands
    quiet = parsed.has("q")
    try:
        check_cache(parsed.last("T"), source=True)
        how = opening(parsed)
        with (
            open_named(first, parsed.last("f"), how) as one,
            open_named(second, parsed.last("F"), how) as other,
        ):
            progress = ProgressLine(shown=parsed.has("p") and not quiet, step=2.0)
            result = compare(
                one.image,
                other.image,
                strict=parsed.has("s"),
                budget=Budget(expansion=1 << 40),
                progress=progress,
            )
            if result.identical:
                progress.complete()
            common = min(one.image.virtual_size, other.image.virtual_size)
    except Failure as failure:
        raise failure.exiting(_TROUBLE) from failure
    except WirtError as error:
        raise failure_of(error).exiting(_UNREADABLE) from error
    if not quiet:
        print("\n".join(_told(result, common)))
    progress.end()
    return 0 if result.identical else 1


def _told(result: Comparison, common: int) -> list[str]:
    lines = []
    if result.reason == "size":
        return ["Strict mode: Image size mismatch!"]
    if result.reason == "allocation":
        return [f"Strict mode: Offset {result.offset} block status mismatch!"]
    if result.sizes_differ and (result.identical or result.offset >= common):
        lines.append("Warning: Image size mismatch!")
    if result.identical:
        return [*lines, "Images are identical."]
    return [*lines, f"Content mismatch at offset {result.offset}!"]
