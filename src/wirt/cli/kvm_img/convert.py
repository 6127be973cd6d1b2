"""``kvm-img convert``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, SHARE, opening, read_words
from wirt.cli.kvm_img.creation import Option, options_of, parse_options
from wirt.cli.kvm_img.failure import Failure, failure_of, warn
from wirt.cli.kvm_img.getopt import Words
from wirt.cli.kvm_img.keyvalue import asks_for_help, joined
from wirt.cli.kvm_img.making import Target, add_old_style, creation_failure, print_option_help
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.opening import Opened, Opening, known_format, open_named
from wirt.cli.kvm_img.progress import ProgressLine
from wirt.cli.kvm_img.protocols import local_path, protocol_name
from wirt.cli.kvm_img.sizes import number_argument, size_argument
from wirt.cli.kvm_img.source_snapshot import check_snapshot_options, chosen_disk
from wirt.errors import ImageInUse, WirtError
from wirt.image.base import Budget, HasBitmaps, Image, WritableImage
from wirt.image.concatenated import Concatenated
from wirt.image.convert import Converted, ConvertSettings, convert, copy_into, new_target
from wirt.image.open import open_image
from wirt.image.stream import is_stream

_LONG = {
    "target-image-opts": "target-image-opts",
    "salvage": "salvage",
    "target-is-zero": "target-is-zero",
    "bitmaps": "bitmaps",
    "skip-broken-bitmaps": "skip-broken-bitmaps",
    **OPEN,
    **SHARE,
}
_SECTOR = 512
_MOST_SPARSE = 32768 * _SECTOR
_MOST_WORKERS = 16
_BUDGET = Budget(metadata_bytes=1 << 40, expansion=1 << 40)


class Request(msgspec.Struct):
    """What the command line asks for."""

    parsed: Words
    format: str
    options: str | None
    sources: list[str]
    target: str
    sparse: int
    workers: int
    rate: int
    secrets: Secrets
    given: dict[str, str] = msgspec.field(default_factory=dict)
    known: tuple[Option, ...] = ()

    @property
    def quiet(self) -> bool:
        return self.parsed.has("q")

    @property
    def into_existing(self) -> bool:
        return self.parsed.has("n")

    @property
    def backing(self) -> str:
        return self.given.get("backing_file") or self.parsed.last("B") or ""


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:e6", _LONG)
    request = _request(parsed)
    if request.options and asks_for_help(request.options):
        return print_option_help(request.target or None, request.format)
    if not request.sources:
        raise Failure("Must specify image file name")
    check_cache(parsed.last("T"), source=True)
    with ExitStack() as stack:
        progress = ProgressLine(shown=parsed.has("p") and not request.quiet)
        try:
            _convert(request, stack, progress)
            progress.complete()
        finally:
            progress.end()
    return 0


def _request(parsed: Words) -> Request:
    """Read and check the options that need no image."""
    options = joined(parsed.every("o"))
    check_snapshot_options(parsed.every("l"))
    sparse = _sparse(parsed.last("S"))
    workers = number_argument(parsed.last("m") or "8", _MOST_WORKERS, 1)
    if workers is None:
        raise Failure(
            "Invalid number of coroutines. Allowed number of coroutines is between 1 and "
            f"{_MOST_WORKERS}"
        )
    rate = size_argument("rate limit", parsed.last("r") or "0")
    _refuse_old(parsed)
    _refuse_contradictions(parsed, options)
    *sources, target = parsed.operands or [""]
    if not sources:
        target = ""
    return Request(
        parsed=parsed,
        format=parsed.last("O") or "raw",
        options=options,
        sources=sources,
        target=target,
        sparse=sparse,
        workers=workers,
        rate=rate,
        secrets=Secrets(parsed.every("object")),
    )


def _sparse(text: str | None) -> int:
    if text is None:
        return 4096
    size = size_argument("buffer size for sparse output", text)
    if size % _SECTOR or size > _MOST_SPARSE:
        raise Failure(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of "
            f"{_SECTOR} up to {_MOST_SPARSE}. Select 0 to disable sparse detection (fully "
            "allocates output)."
        )
    return size


def _refuse_old(parsed: Words) -> None:
    if parsed.has("e"):
        raise Failure(
            "option -e is deprecated, please use '-o encryption' instead!",
            hint="AES encryption was insecure. Use LUKS: --object secret,id=s,file=PATH "
            "-o encrypt.format=luks,encrypt.key-secret=s\n",
        )
    if parsed.has("6"):
        raise Failure("option -6 is deprecated, please use '-o compat6' instead!")


def _refuse_contradictions(parsed: Words, options: str | None) -> None:
    problems = (
        (
            parsed.has("skip-broken-bitmaps") and not parsed.has("bitmaps"),
            "Use of --skip-broken-bitmaps requires --bitmaps",
        ),
        (
            parsed.has("c") and parsed.has("C"),
            "Cannot enable copy offloading when -c is used",
        ),
        (parsed.has("S") and parsed.has("C"), "Cannot enable copy offloading when -S is used"),
        (
            parsed.has("C") and parsed.has("salvage"),
            "Cannot use copy offloading in salvaging mode",
        ),
        (
            parsed.has("target-image-opts") and not parsed.has("n"),
            "--target-image-opts requires use of -n flag",
        ),
        (
            parsed.has("n") and options is not None,
            "-o has no effect when skipping image creation",
        ),
        (
            parsed.has("target-is-zero") and not parsed.has("n"),
            "--target-is-zero requires use of -n flag",
        ),
    )
    for wrong, message in problems:
        if wrong:
            raise Failure(message)


def _convert(request: Request, stack: ExitStack, progress: ProgressLine) -> None:
    parsed = request.parsed
    how = opening(parsed)
    opened = [
        stack.enter_context(open_named(name, parsed.last("f"), how)) for name in request.sources
    ]
    disks = _disks(opened, parsed.last("l"))
    if not request.into_existing:
        _plan(request, disks)
    _check(request, opened)
    source = disks[0] if len(disks) == 1 else Concatenated(disks)
    if request.into_existing:
        done = _copy_into_existing(request, source, progress)
    else:
        check_cache(parsed.last("t"))
        done = _copy_into_new(request, source, progress)
    _tell(request, done)


def _disks(opened: list[Opened], snapshot: str | None) -> list[Image]:
    if snapshot is None:
        return [one.image for one in opened]
    if len(opened) > 1:
        raise Failure("No support for concatenating multiple snapshot")
    return [chosen_disk(opened[0], snapshot)]


def _plan(request: Request, disks: list[Image]) -> None:
    """Settle the options of a new target."""
    known_format(request.format)
    protocol_name(request.target)
    request.known = options_of(request.format)
    request.given = parse_options(request.options or "", request.known)
    request.given["size"] = str(sum(disk.virtual_size for disk in disks))
    add_old_style(
        request.given,
        request.known,
        request.format,
        request.parsed.last("B"),
        request.parsed.last("F"),
    )


def _check(request: Request, opened: list[Opened]) -> None:
    parsed, given = request.parsed, request.given
    if parsed.has("target-is-zero") and request.backing:
        raise Failure("Cannot use --target-is-zero when the destination image has a backing file")
    if len(opened) > 1 and request.backing:
        raise Failure(
            "Having a backing file for the target makes no sense when concatenating multiple "
            "input images"
        )
    if "backing_file" in given and "backing_fmt" not in given:
        raise Failure("Use of backing file requires explicit backing format")
    if parsed.has("c") and not request.into_existing:
        _check_compression(request)
    if parsed.has("bitmaps"):
        if len(opened) > 1:
            raise Failure("Copying bitmaps only possible with single source")
        _check_bitmaps(opened[0].image, skip=parsed.has("skip-broken-bitmaps"))


def _check_compression(request: Request) -> None:
    if request.format not in {"qcow2", "qcow", "vmdk"}:
        raise Failure("Compression not supported for this file format")
    given = request.given
    if given.get("encryption", "off") == "on" or "encrypt.format" in given:
        raise Failure("Compression and encryption not supported at the same time")
    if given.get("preallocation", "off") != "off":
        raise Failure("Compression and preallocation not supported at the same time")


def _check_bitmaps(source: Image, *, skip: bool) -> None:
    if not isinstance(source, HasBitmaps) or not source.can_have_bitmaps:
        raise Failure("Source lacks bitmap support")
    for bitmap in source.bitmaps():
        if bitmap.in_use and not skip:
            raise Failure(
                f"Cannot copy inconsistent bitmap '{bitmap.name}'",
                hint="Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n",
            )


def _settings(request: Request, options: dict[str, str]) -> ConvertSettings:
    parsed = request.parsed
    return ConvertSettings(
        options=options,
        compressed=parsed.has("c"),
        workers=request.workers if parsed.has("m") else 0,
        zero_unit=request.sparse,
        backing=request.backing,
        backing_format=request.given.get("backing_fmt", ""),
        into_existing=request.into_existing,
        target_is_zero=parsed.has("target-is-zero"),
        offload=True if parsed.has("C") else None,
        bitmaps=parsed.has("bitmaps"),
        skip_broken_bitmaps=parsed.has("skip-broken-bitmaps"),
        salvage=parsed.has("salvage"),
        rate_limit=request.rate,
        budget=_BUDGET,
    )


def _copy_into_new(request: Request, source: Image, progress: ProgressLine) -> Converted:
    target = Target(request.target, request.format, request.known, request.given, request.secrets)
    path = local_path(request.target)
    created = f"{request.target}: error while converting {request.format}: "
    options = target.engine_options()
    settings = _settings(request, options)
    size = int(request.given["size"])
    if is_stream(path):
        return _worded(lambda: convert([source], path, request.format, settings))
    with ExitStack() as stack:
        try:
            place = stack.enter_context(new_target(path, request.format, size, settings))
        except ImageInUse as error:
            error.path = request.target
            raise failure_of(error).prefixed(created) from error
        except WirtError as error:
            raise creation_failure(error, path).prefixed(created) from error
        secret = options.get("secret", options.get("encrypt.secret"))
        return _worded(lambda: _fill(place, request, secret, source, settings, progress))


def _fill(
    place: str,
    request: Request,
    secret: str | None,
    source: Image,
    settings: ConvertSettings,
    progress: ProgressLine,
) -> Converted:
    with open_image(
        place,
        format=request.format,
        writable=True,
        gate=settings.gate,
        budget=_BUDGET,
        secret=None if secret is None else secret.encode("utf-8", "surrogateescape"),
    ) as image:
        return _copy(image, request, source, settings, progress)


def _copy_into_existing(request: Request, source: Image, progress: ProgressLine) -> Converted:
    parsed = request.parsed
    check_cache(parsed.last("t"))
    with_options = parsed.has("target-image-opts")
    how = Opening(writable=True, image_opts=with_options, secrets=request.secrets)
    format_name = None if with_options and not parsed.has("O") else request.format
    with open_named(request.target, format_name, how) as opened:
        image = opened.image
        if image.virtual_size < source.virtual_size:
            raise Failure("output file is smaller than input file")
        settings = _settings(request, {})
        return _worded(lambda: _copy(image, request, source, settings, progress))


def _copy(
    image: Image,
    request: Request,
    source: Image,
    settings: ConvertSettings,
    progress: ProgressLine,
) -> Converted:
    if not isinstance(image, WritableImage):
        raise Failure(f"{image.format_name} images cannot be written")
    if request.parsed.has("bitmaps") and not (
        isinstance(image, HasBitmaps) and image.can_have_bitmaps
    ):
        raise Failure(f"Format driver '{image.format_name}' does not support bitmaps")
    return copy_into(image, source, settings, progress=progress)


def _worded(work: object) -> Converted:
    try:
        done = work()  # type: ignore[operator]
    except WirtError as error:
        raise failure_of(error) from error
    return done  # type: ignore[no-any-return]


def _tell(request: Request, done: Converted) -> None:
    if not request.quiet:
        for offset, _ in done.unreadable:
            warn(f"error while reading offset {offset}: Input/output error")
    for name in done.skipped_bitmaps:
        warn(f"Skipping inconsistent bitmap '{name}'")
