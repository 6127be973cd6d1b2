"""wirt img bench"""

from __future__ import annotations

import argparse

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json
from wirt.errors import UsageError
from wirt.image.bench import Requests, bench
from wirt.units import format_size, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--count", type=int, default=75_000, help="requests")
    parser.add_argument("--depth", type=int, default=64, help="requests at a time")
    parser.add_argument("--offset", metavar="SIZE", default="0", help="where the first one goes")
    parser.add_argument("--size", metavar="SIZE", default="4K", help="bytes of a request")
    parser.add_argument(
        "--step", metavar="SIZE", default="0", help="bytes from one to the next (its size)"
    )
    parser.add_argument(
        "--write", action="store_true", help="write; what the image holds there is lost"
    )
    parser.add_argument("--pattern", type=int, default=0, metavar="BYTE", help="what is written")
    parser.add_argument("--flush-interval", type=int, default=0, metavar="N", help="flush after N")
    declare(parser, "wirt img bench disk.qcow2", "wirt img bench --write --size 64K scratch.qcow2")


def run(args: argparse.Namespace) -> int:
    """Time many requests on an image."""
    if not 0 <= args.pattern < 256:
        raise UsageError("--pattern is a byte: 0 to 255")
    size = parse_size(args.size)
    requests = Requests(
        count=args.count,
        depth=args.depth,
        offset=parse_size(args.offset),
        size=size,
        step=parse_size(args.step),
        write=args.write,
        pattern=args.pattern,
        flush_interval=args.flush_interval,
    )
    with Access.of(args).open(args.image, writable=args.write) as image:
        seconds = bench(image, requests)
    rate = args.count / seconds
    if args.json:
        print_json(
            {"seconds": seconds, "requests_per_second": rate, "bytes_per_second": rate * size}
        )
    else:
        print(
            f"{args.count} requests of {format_size(size)} in {seconds:.3f} s: "
            f"{rate:.0f} a second, {format_size(int(rate * size))}/s"
        )
    return 0
