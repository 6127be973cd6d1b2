"""wirt img info"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json, print_table, printable
from wirt.errors import ImageError, NoMedium
from wirt.image.base import HasBitmaps, HasSnapshots, Image, ImageInfo
from wirt.image.layers import layers
from wirt.image.locks import is_written
from wirt.units import format_size

_SIZES = ("virtual_size", "allocated_size", "file_size", "cluster_size")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    declare(parser, "wirt img info disk.qcow2", "wirt img info --json *.vmdk", many=True)


def run(args: argparse.Namespace) -> int:
    """Tell what images are, with the chains behind them; also of machines that run."""
    access = Access.of(args)
    found = [_describe(access, path) for path in args.images]
    if args.json:
        print_json(found)
        return 0
    for number, about in enumerate(found):
        if number:
            print()
        _print(about)
    return 0


def _describe(access: Access, path: str) -> dict[str, Any]:
    try:
        image, problem = _opened(access, path)
    except NoMedium as error:
        return _empty_drive(access, path, error)
    with image:
        fd = image.storage.fileno()
        return {
            **_facts(image),
            "file_size": image.storage.size(),
            "in_use": fd is not None and is_written(fd),
            "snapshots": list(image.snapshots()) if isinstance(image, HasSnapshots) else [],
            "bitmaps": list(image.bitmaps()) if isinstance(image, HasBitmaps) else [],
            "chain": [_facts(layer) for layer in list(layers(image))[1:]],
            "chain_problem": problem,
        }


def _empty_drive(access: Access, path: str, problem: NoMedium) -> dict[str, Any]:
    """Tell of a drive without a medium what the drive tells."""
    if problem.tray:
        inside = {"tray": problem.tray, "disc": "none"}
        info = ImageInfo("host_cdrom", 0, 0, specific=inside)
    else:
        info = ImageInfo(access.format or "host_device", 0, 0, specific={"medium": "none"})
    return {
        **_told(path, info),
        "file_size": 0,
        "in_use": False,
        "snapshots": [],
        "bitmaps": [],
        "chain": [],
        "chain_problem": "",
    }


def _opened(access: Access, path: str) -> tuple[Image, str]:
    """Open an image with its chain, or alone and with the reason."""
    try:
        return access.look_at(path), ""
    except ImageError as error:
        try:
            return access.look_at(path, with_backing=False), f"{error}; {error.hint}".rstrip("; ")
        except ImageError:
            raise error from None


def _facts(image: Image) -> dict[str, Any]:
    return _told(image.storage.name, image.info())


def _told(name: str, info: ImageInfo) -> dict[str, Any]:
    return {
        "file": name,
        "format": info.format,
        "virtual_size": info.virtual_size,
        "allocated_size": info.allocated_size,
        "cluster_size": info.cluster_size,
        "backing_name": info.backing_name,
        "backing_format": info.backing_format,
        "encrypted": info.encrypted,
        "dirty": info.dirty,
        "specific": dict(info.specific),
    }


def _print(about: Mapping[str, Any]) -> None:
    for key in ("file", "format", *_SIZES, "backing_name", "backing_format"):
        if about[key]:
            _line(key, format_size(about[key]) if key in _SIZES else about[key])
    for key in ("encrypted", "dirty", "in_use"):
        if about[key]:
            _line(key, "yes")
    for key, value in about["specific"].items():
        if key != "bitmaps":  # told below
            _line(key, _words(value))
    _print_behind(about)
    _print_inside(about)


def _print_behind(about: Mapping[str, Any]) -> None:
    if about["chain"]:
        print("chain:")
        for number, layer in enumerate(about["chain"], 1):
            sizes = " on disk, of ".join(
                format_size(layer[key]) for key in ("allocated_size", "virtual_size")
            )
            print(printable(f"  {number}  {layer['file']}  {layer['format']}, {sizes}"))
    if about["chain_problem"]:
        _line("chain", f"not read: {about['chain_problem']}")


def _print_inside(about: Mapping[str, Any]) -> None:
    if about["snapshots"]:
        print("snapshots:")
        print_snapshots(about["snapshots"])
    if about["bitmaps"]:
        print("bitmaps:")
        print_bitmaps(about["bitmaps"])


def print_snapshots(snapshots: Iterable[Any]) -> None:
    from datetime import UTC, datetime

    rows = [
        (
            one.id,
            one.name,
            datetime.fromtimestamp(one.date_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            format_size(one.virtual_size),
            format_size(one.vm_state_size) if one.vm_state_size else "-",
        )
        for one in snapshots
    ]
    print_table(("ID", "NAME", "MADE (UTC)", "DISK", "VM STATE"), rows)


def print_bitmaps(bitmaps: Iterable[Any]) -> None:
    rows = [
        (
            one.name,
            format_size(one.granularity),
            "yes" if one.enabled else "no",
            "inconsistent" if one.in_use else "",
        )
        for one in bitmaps
    ]
    print_table(("NAME", "GRANULARITY", "RECORDS", "STATE"), rows)


def _line(key: str, value: object) -> None:
    print(printable(f"{key.replace('_', ' ').replace('-', ' ')}: {value}"))


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)
