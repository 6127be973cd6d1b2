"""``kvm-img check``.

Exit codes: 0 good, 1 could not be checked, 2 corrupt, 3 leaks only, 63 the format has no check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msgspec.structs import replace

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words, wants_json
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of
from wirt.cli.kvm_img.json_text import pretty
from wirt.cli.kvm_img.opening import Opened, open_named
from wirt.errors import WirtError
from wirt.image.base import Checkable, CheckResult

_NO_CHECK = 63
_NO_LEAKS = frozenset({"vmdk", "vdi", "vhdx"})
"""Formats of which qemu-img counts no unused space, and scripts expect 0 for."""


def run(words: Sequence[str]) -> int:
    long = {"format": "f:", "repair": "r:", "output": "output:", **OPEN, **SHARE}
    parsed = read_words(words, "hf:r:T:qU", long)
    repair = parsed.last("r") or ""
    for value in parsed.every("r"):
        if value not in {"leaks", "all"}:
            raise Misuse(f"Unknown option value for -r (expecting 'leaks' or 'all'): {value}")
    name = one_file(parsed)
    as_json = wants_json(parsed)
    check_cache(parsed.last("T"), source=True)
    how = replace(opening(parsed, writable=bool(repair)), allow_dirty=True)
    with open_named(name, parsed.last("f"), how) as opened:
        if not isinstance(opened.image, Checkable):
            raise Failure("This image format does not support checks", code=_NO_CHECK)
        try:
            result = opened.image.check(repair=repair)
        except WirtError as error:
            raise failure_of(error).prefixed("Check failed: ") from error
        if opened.format in _NO_LEAKS and not repair:
            result.leaks = 0
        quiet = parsed.has("q")
        sys.stderr.write("".join(f"{message}\n" for message in result.messages))
        if not quiet:
            _show(opened, name, result, as_json=as_json)
    if result.corruptions:
        return 2
    return 3 if result.leaks else 0


def _show(opened: Opened, name: str, result: CheckResult, *, as_json: bool) -> None:
    if as_json:
        print(pretty(_members(opened, name, result)))
        return
    if result.leaks_fixed or result.corruptions_fixed:
        print(
            "The following inconsistencies were found and repaired:\n\n"
            f"    {result.leaks_fixed} leaked clusters\n"
            f"    {result.corruptions_fixed} corruptions\n\n"
            "Double checking the fixed image now..."
        )
    _show_text(result)


def _members(opened: Opened, name: str, result: CheckResult) -> dict[str, object]:
    members: dict[str, object] = {"filename": name, "format": opened.format, "check-errors": 0}
    counts = {
        "image-end-offset": result.image_end_offset,
        "corruptions": result.corruptions,
        "leaks": result.leaks,
        "corruptions-fixed": result.corruptions_fixed,
        "leaks-fixed": result.leaks_fixed,
        "total-clusters": result.total_clusters,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
    }
    return members | {key: value for key, value in counts.items() if value}


def _show_text(result: CheckResult) -> None:
    if not result.corruptions and not result.leaks:
        print("No errors were found on the image.")
    if result.corruptions:
        print(
            f"\n{result.corruptions} errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it."
        )
    if result.leaks:
        print(
            f"\n{result.leaks} leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data."
        )
    total, used = result.total_clusters, result.allocated_clusters
    if total and used:
        print(
            f"{used}/{total} = {used * 100 / total:.2f}% allocated, "
            f"{result.fragmented_clusters * 100 / used:.2f}% fragmented, "
            f"{result.compressed_clusters * 100 / used:.2f}% compressed clusters"
        )
    if result.image_end_offset:
        print(f"Image end offset: {result.image_end_offset}")
