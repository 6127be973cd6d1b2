"""wirt capture"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager
from typing import IO, Self

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable, say, warn
from wirt.errors import HostError, UsageError
from wirt.net.pcap import Frame
from wirt.units import parse_duration
from wirt.vm.network.capture import Capture

_POLL_SECONDS = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="VM[:CARD] | switch:NAME", help="where to listen")
    parser.add_argument("-w", "--write", default="", metavar="FILE", help="a pcap file; - : output")
    parser.add_argument("--live", action="store_true", help="a line for each frame (the default)")
    parser.add_argument(
        "-c", "--count", type=int, default=0, metavar="N", help="end after N frames"
    )
    parser.add_argument("-t", "--time", default="", metavar="TIME", help="end after this long")
    example(
        parser,
        "wirt capture web",
        "wirt capture web:nic1 -w web.pcap -t 30s",
        "wirt capture switch:dmz -w - | tshark -r -",
    )


def run(args: argparse.Namespace) -> int:
    """Record or watch frames until Ctrl-C, a number, a time, or the end of the machine."""
    show = _show_json if args.json else _show
    live = args.live or not args.write
    if live and args.write == "-":
        raise UsageError("lines and frames do not go to the same place", hint="-w FILE --live")
    frames = 0
    with _source(args.target) as capture, _Sink(args.write) as sink:
        end = time.monotonic() + parse_duration(args.time) if args.time else None
        try:
            while not capture.ended and (end is None or time.monotonic() < end):
                frame = capture.get(_POLL_SECONDS)
                if frame is None:
                    continue
                frames += 1
                sink.write(frame)
                if live:
                    show(frame)
                if frames == args.count:
                    break
        except KeyboardInterrupt:
            pass  # that is how a capture ends
        dropped = capture.dropped
    return _tell(args, frames, dropped)


def _source(target: str) -> AbstractContextManager[Capture]:
    from wirt.vm.context import Context
    from wirt.vm.network.capture import capture_card, capture_switch

    name, colon, card = target.partition(":")
    if name == "switch" and colon:
        return capture_switch(Context(say=say), card)
    return capture_card(Context(say=say), name, card)


class _Sink:
    """A pcap file, or nowhere."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        from wirt.net.pcap import pack_header

        if self._path:
            try:
                self._file = sys.stdout.buffer if self._path == "-" else open(self._path, "wb")
            except OSError as error:
                raise HostError(f"{self._path}: {error.strerror}") from error
            self._file.write(pack_header())
            self._file.flush()
        return self

    def write(self, frame: Frame) -> None:
        from wirt.net.pcap import pack_frame

        if self._file is not None:
            self._file.write(pack_frame(frame))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._path != "-":
            self._file.close()


def _show(frame: Frame) -> None:
    from wirt.net.frame import summary

    stamp = time.strftime("%H:%M:%S", time.localtime(frame.time))
    print(f"{stamp}.{int(frame.time % 1 * 1000):03d} {printable(summary(frame.data))}", flush=True)


def _show_json(frame: Frame) -> None:
    from wirt.net.frame import summary

    print_json({"time": frame.time, "length": frame.length, "summary": summary(frame.data)})
    sys.stdout.flush()


def _tell(args: argparse.Namespace, frames: int, dropped: int) -> int:
    if dropped:
        warn(f"{dropped} frames came faster than they were taken away, and were dropped")
    if args.write and args.write != "-" and not args.json:
        print(f"{args.write}: {frames} frames")
    return 0
