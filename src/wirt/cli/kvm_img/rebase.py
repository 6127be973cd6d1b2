"""``kvm-img rebase``."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of
from wirt.cli.kvm_img.opening import Opened, Opening, full_backing_name, open_named, open_user_name
from wirt.cli.kvm_img.progress import ProgressLine
from wirt.cli.kvm_img.protocols import PROTOCOLS
from wirt.errors import UsageError, WirtError
from wirt.image.base import Overlay
from wirt.image.rebase import keep_what_differs
from wirt.image.registry import find_format


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "hf:F:b:upt:T:qU", {**OPEN, **SHARE})
    name = one_file(parsed)
    backing, backing_format, unsafe = parsed.last("b"), parsed.last("F"), parsed.has("u")
    if not unsafe and backing is None:
        raise Misuse("Must specify backing file (-b) or use unsafe mode (-u)")
    check_cache(parsed.last("t"))
    check_cache(parsed.last("T"), source=True)
    how = replace(opening(parsed, writable=True, with_backing=not unsafe), force_share=False)
    with open_named(name, parsed.last("f"), how) as opened:
        _check_format(backing_format)
        progress = ProgressLine(shown=parsed.has("p") and not parsed.has("q"), step=2.0)
        if not unsafe:
            look = replace(how, writable=False, force_share=parsed.has("U"), image_opts=False)
            _keep(opened, backing or "", backing_format, look, progress)
        _change(opened, backing, backing_format)
        progress.complete()
        progress.end()
    return 0


def _check_format(name: str | None) -> None:
    """Protocols pass too: qemu-img knows them as formats of a kind."""
    try:
        if name is not None and name not in PROTOCOLS:
            find_format(name)
    except UsageError:
        raise Failure(f"Invalid format name: '{name}'") from None


def _keep(
    opened: Opened, backing: str, backing_format: str | None, how: Opening, progress: ProgressLine
) -> None:
    """Store in the image what the new backing image would show differently."""
    if not isinstance(opened.image, Overlay):
        return
    if not backing:
        keep_what_differs(opened.image, None, progress=progress)
        return
    try:
        new = open_user_name(full_backing_name(opened, backing), backing_format, how)
    except Failure as failure:
        raise failure.prefixed(f"Could not open new backing file '{backing}': ") from failure
    with new:
        keep_what_differs(opened.image, new.image, progress=progress)


def _change(opened: Opened, backing: str | None, backing_format: str | None) -> None:
    failed = f"Could not change the backing file to '{backing or '(null)'}': "
    if not isinstance(opened.image, Overlay):
        raise Failure(f"{failed}Operation not supported")
    if backing and not backing_format:
        raise Failure(f"{failed}backing format must be specified")
    try:
        opened.image.set_backing(backing or None, backing_format if backing else None)
        opened.image.flush()
    except WirtError as error:
        raise failure_of(error).prefixed(failed) from error
