"""``kvm-img amend``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, opening, read_words
from wirt.cli.kvm_img.creation import AMENDMENT, help_lines, options_of, parse_options
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of, report
from wirt.cli.kvm_img.keyvalue import asks_for_help, joined
from wirt.cli.kvm_img.opening import Opened, known_format, open_named
from wirt.cli.kvm_img.progress import ProgressLine
from wirt.errors import WirtError
from wirt.image.base import Resizable


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "ho:f:t:pq", {"force": "force", **OPEN})
    options = joined(parsed.every("o"))
    if options is None:
        raise Misuse("Must specify options (-o)")
    format_name = parsed.last("f")
    wants_help = asks_for_help(options)
    if format_name is not None and wants_help:
        return _print_help(format_name)
    if len(parsed.operands) != 1:
        raise Failure("Expecting one image file name")
    check_cache(parsed.last("t"))
    name = parsed.operands[0]
    with open_named(name, format_name, opening(parsed, writable=True)) as opened:
        if wants_help:
            return _print_help(opened.format)
        given = _options(opened.format, options)
        progress = ProgressLine(shown=parsed.has("p") and not parsed.has("q"))
        try:
            _amend(opened, given)
        except WirtError as error:
            failure = failure_of(error)
            # What a new image calls its version, amend calls compat.
            failure.message = failure.message.replace("version=v3", "compat=1.1")
            raise failure from error
        finally:
            progress.complete()
            progress.end()
    return 0


def _print_help(format_name: str) -> int:
    try:
        known_format(format_name)
    except Failure as failure:
        report(failure.message)
        return 1
    if format_name not in AMENDMENT:
        report(f"Format driver '{format_name}' does not support option amendment")
        return 1
    print(f"Amend options for '{format_name}':")
    print("\n".join(help_lines(AMENDMENT[format_name])))
    return 0


def _options(format_name: str, text: str) -> dict[str, str]:
    if format_name not in AMENDMENT:
        raise Failure(f"Format driver '{format_name}' does not support option amendment")
    try:
        return parse_options(text, AMENDMENT[format_name])
    except Failure as failure:
        try:
            parse_options(text, (*AMENDMENT[format_name], *options_of(format_name)))
        except Failure:
            raise failure from None
        failure.hint = "This option is only supported for image creation\n"
        raise


def _amend(opened: Opened, given: dict[str, str]) -> None:
    image = opened.image
    size = given.pop("size", None)
    amend = getattr(image, "amend", None)
    if amend is None:
        raise Failure(f"Format driver '{opened.format}' does not support option amendment")
    _refuse_backing(opened, given)
    # Version 2 cannot do all that version 3 can: go down last.
    steps = [partial(_resize, opened, size), partial(amend, given) if given else _nothing]
    for step in steps if given.get("compat") in {"0.10", "v2"} else reversed(steps):
        step()


def _nothing() -> None:
    return


def _refuse_backing(opened: Opened, given: dict[str, str]) -> None:
    """A backing image may be named, but only the one that there is."""
    info = opened.image.info()
    name, kind = given.pop("backing_file", None), given.pop("backing_fmt", None)
    if name not in {None, info.backing_name} or kind not in {None, info.backing_format}:
        raise Failure(
            "Cannot amend the backing file",
            hint="You can use 'qemu-img rebase' instead.\n",
        )


def _resize(opened: Opened, size: str | None) -> None:
    image = opened.image
    if size is not None and int(size) != image.virtual_size and isinstance(image, Resizable):
        image.resize(int(size))
