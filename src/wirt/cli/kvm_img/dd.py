"""``kvm-img dd``."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.command import OPEN, SHARE, opening, read_words
from wirt.cli.kvm_img.creation import options_of
from wirt.cli.kvm_img.failure import Failure, report
from wirt.cli.kvm_img.making import creation_failure
from wirt.cli.kvm_img.opening import Opened, known_format, open_named
from wirt.cli.kvm_img.protocols import local_path, protocol_name
from wirt.cli.kvm_img.sizes import INT64_MAX, INT_MAX, size_argument
from wirt.errors import WirtError
from wirt.image.convert import ConvertSettings, convert
from wirt.image.part import Part

_LEAST = {"bs": 1, "count": 0, "skip": 0}


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "hf:O:U", {**OPEN, **SHARE})
    given = _operands(parsed.operands)
    numbers = {
        name: size_argument(name, given[name], least, INT_MAX if name == "bs" else INT64_MAX)
        for name, least in _LEAST.items()
        if name in given
    }
    if "if" not in given or "of" not in given:
        raise Failure("Must specify both input and output files")
    out = parsed.last("O") or "raw"
    with open_named(given["if"], parsed.last("f"), opening(parsed)) as opened:
        _copy(opened, given, out, numbers)
    return 0


def _operands(words: Sequence[str]) -> dict[str, str]:
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in {"bs", "count", "if", "of", "skip"}:
            raise Failure(f"unrecognized operand {name}")
        given[name] = value
    return given


def _copy(opened: Opened, given: dict[str, str], out: str, numbers: dict[str, int]) -> None:
    try:
        known_format(out)
    except Failure:
        raise Failure("Unknown file format") from None
    name = given["of"]
    protocol_name(name)
    options_of(out)
    block, count = numbers.get("bs", 512), numbers.get("count")
    end = opened.image.virtual_size
    if count is not None:
        end = min(end, count * block)
    start = numbers.get("skip", 0) * block
    if start > end:
        report(f"{given['if']}: cannot skip to specified offset")
        start = end
    part = Part(opened.image, start, end)
    try:
        convert([part], local_path(name), out, ConvertSettings())
    except WirtError as error:
        raise creation_failure(error, local_path(name)).prefixed(
            f"{name}: error while creating output image: "
        ) from error
