"""wirt img convert"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from wirt.cli.image_access import (
    Access,
    add_options,
    declare,
    format_for,
    new_secret,
    parse_options,
    read_secret,
    refuse_existing,
    with_secret,
)
from wirt.cli.output import print_json, warn
from wirt.cli.progress import ProgressLine
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import HasSnapshots, Image
from wirt.image.compressors import LEVELS
from wirt.image.convert import Converted, ConvertSettings, convert
from wirt.image.probe import probe_file
from wirt.image.replacement import is_replaceable
from wirt.image.stream import convert_to_stream, is_stream
from wirt.units import format_size, parse_size

_OFFLOAD = {"auto": None, "always": True, "never": False}
_STDOUT = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="images, one behind the other")
    parser.add_argument("target", metavar="TARGET", help="the image to make; '-': standard output")
    parser.add_argument("--to", metavar="FORMAT", help="format of TARGET; else by its suffix")
    add_options(parser)
    parser.add_argument("-c", "--compress", action="store_true", help="compress the data")
    parser.add_argument("--level", choices=LEVELS, default="normal", help="how hard to compress")
    parser.add_argument("--window-4k", action="store_true", help="compress for very old readers")
    parser.add_argument("--encrypt", action="store_true", help="encrypt TARGET (LUKS)")
    parser.add_argument(
        "--target-secret-file", metavar="FILE", help="its passphrase; else it is asked for"
    )
    parser.add_argument("--force", action="store_true", help="replace a TARGET that exists")
    parser.add_argument(
        "--resume", action="store_true",
        help="keep what is done when interrupted; the same command goes on from there",
    )  # fmt: skip
    _declare_more(parser)
    declare(
        parser,
        "wirt img convert disk.vmdk disk.qcow2",
        "wirt img convert -c -o compression_type=zstd disk.raw small.qcow2",
        "wirt img convert --to raw disk.qcow2 - | ssh host 'dd of=/dev/vg/disk'",
        many=True,
    )


def _declare_more(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("more about the copy")
    group.add_argument(
        "-b", "--backing", metavar="IMAGE", default="",
        help="make TARGET an overlay of this image; only SOURCE's first layer is copied",
    )  # fmt: skip
    group.add_argument("-F", "--backing-format", metavar="FORMAT", help="format of that image")
    group.add_argument("--snapshot", metavar="NAME", help="copy this snapshot inside SOURCE")
    group.add_argument("--into", action="store_true", help="write into a TARGET that exists")
    group.add_argument("--target-is-zero", action="store_true", help="it reads as zeros everywhere")
    group.add_argument(
        "--sparse", metavar="SIZE", default="4K",
        help="do not store runs of so many zeros; 0: store all",
    )  # fmt: skip
    group.add_argument(
        "--offload", choices=_OFFLOAD, default="auto",
        help="let the kernel copy (auto: where files can share blocks)",
    )  # fmt: skip
    group.add_argument("--workers", type=int, default=0, metavar="N", help="threads (all cores)")
    group.add_argument("--rate-limit", metavar="SIZE", help="bytes per second at most")
    group.add_argument("--salvage", action="store_true", help="store zeros for what is unreadable")
    group.add_argument("--bitmaps", action="store_true", help="copy the bitmaps too")
    group.add_argument("--skip-broken-bitmaps", action="store_true", help="but not broken ones")


def run(args: argparse.Namespace) -> int:
    """Copy images into a new one of any format; it appears when it is complete."""
    access = Access.of(args)
    name = format_for(args.target, args.to)
    to_stdout = args.target == _STDOUT
    if not to_stdout:
        _refuse_harm(args)
    settings = _settings(args, access, name)
    with ExitStack() as stack:
        images = [stack.enter_context(access.open(path)) for path in args.sources]
        sources = images if args.snapshot is None else [_snapshot(args.snapshot, images)]
        with ProgressLine("converting") as progress:
            if to_stdout:
                _to_stdout(sources, name, settings, progress)
                return 0
            done = _convert(sources, args, name, settings, progress)
    _report(args, name, done)
    return 0


def _refuse_harm(args: argparse.Namespace) -> None:
    """What is on TARGET is only overwritten with consent."""
    if args.into or is_stream(args.target):
        return
    if not is_replaceable(args.target) and not args.force:
        raise UsageError(
            f"{args.target} is no file: all that is there would be overwritten",
            hint="if that is meant: --force",
        )
    refuse_existing(args.target, force=args.force)


def _snapshot(name: str, images: list[Image]) -> Image:
    [image, *others] = images
    if others:
        raise UsageError("--snapshot is for one source")
    if not isinstance(image, HasSnapshots):
        raise UnsupportedImage(f"{image.format_name} images have no snapshots")
    return image.snapshot_view(name)


def _settings(args: argparse.Namespace, access: Access, name: str) -> ConvertSettings:
    options, secret = parse_options(args.options), None
    if args.encrypt:
        secret = new_secret(args.target_secret_file, args.target)
        options |= {"encrypt.format": "luks"} if name == "qcow2" else {}
        options = with_secret(options, secret)
    elif args.into and args.target_secret_file:
        secret = read_secret(args.target_secret_file, f"passphrase of {args.target}")
    return ConvertSettings(
        options=options,
        backing=args.backing,
        backing_format=_backing_format(args),
        compressed=args.compress,
        level=args.level,
        window_4k=args.window_4k,
        workers=args.workers,
        zero_unit=parse_size(args.sparse),
        into_existing=args.into or not is_replaceable(args.target),
        target_is_zero=args.target_is_zero,
        offload=_OFFLOAD[args.offload],
        bitmaps=args.bitmaps,
        skip_broken_bitmaps=args.skip_broken_bitmaps,
        salvage=args.salvage,
        resume=args.resume,
        rate_limit=parse_size(args.rate_limit) if args.rate_limit else 0,
        budget=access.budget,
        secret=secret,
    )


def _backing_format(args: argparse.Namespace) -> str:
    if not args.backing or args.backing_format:
        return args.backing_format or ""
    return probe_file(os.path.join(os.path.dirname(args.target), args.backing))


def _to_stdout(
    sources: list[Image], name: str, settings: ConvertSettings, progress: ProgressLine
) -> None:
    if sys.stdout.isatty():
        raise UsageError("an image is nothing to look at", hint="pipe it: wirt img convert … - |")
    if settings.compressed or settings.backing or settings.bitmaps or settings.resume:
        raise UsageError("a pipe takes plain images", hint="write to a file")
    convert_to_stream(
        sources, sys.stdout.fileno(), name,
        options=settings.options, budget=settings.budget, progress=progress,
    )  # fmt: skip


def _convert(
    sources: list[Image], args: argparse.Namespace, name: str, settings: ConvertSettings,
    progress: ProgressLine,
) -> Converted:  # fmt: skip
    try:
        return convert(sources, args.target, name, settings, progress=progress)
    except BaseException:
        if args.resume and os.path.exists(args.target + ".partial.progress"):
            warn("what is done is kept; the same command goes on from there")
        raise


def _report(args: argparse.Namespace, name: str, done: Converted) -> None:
    lost = sum(length for _, length in done.unreadable)
    made: Mapping[str, Any] = {
        "target": args.target,
        "format": name,
        "allocated_size": _allocated(args.target),
        "unreadable": done.unreadable,
        "skipped_bitmaps": done.skipped_bitmaps,
    }
    if args.json:
        print_json(made)
        return
    if is_stream(args.target):
        return
    print(f"{args.target}: {name}, {format_size(made['allocated_size'])} on disk")
    if lost:
        warn(f"{format_size(lost)} could not be read and are zeros")
    for bitmap in done.skipped_bitmaps:
        warn(f"the bitmap {bitmap} is broken and was left out")


def _allocated(path: str) -> int:
    return os.stat(path).st_blocks * 512 if os.path.exists(path) else 0
