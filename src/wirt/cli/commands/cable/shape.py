"""What a cable does to frames, as flags."""

from __future__ import annotations

import argparse

from wirt.errors import UsageError
from wirt.store.wires import Shape
from wirt.units import parse_duration, parse_size


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the flags; each works in both directions."""
    group = parser.add_argument_group("what happens to frames, in each direction")
    group.add_argument("--delay", metavar="TIME", help="50ms")
    group.add_argument("--jitter", metavar="TIME", help="the delay varies by as much: 5ms")
    group.add_argument("--loss", metavar="PERCENT", help="10")
    group.add_argument("--bandwidth", metavar="SIZE", help="bytes a second: 2M")


def shape_of(args: argparse.Namespace, old: Shape) -> Shape:
    """Return ``old`` with what the flags say. Raises UsageError."""
    return Shape(
        delay=old.delay if args.delay is None else _milliseconds(args.delay),
        jitter=old.jitter if args.jitter is None else _milliseconds(args.jitter),
        loss=old.loss if args.loss is None else _percent(args.loss),
        bandwidth=old.bandwidth if args.bandwidth is None else parse_size(args.bandwidth),
    )


def _milliseconds(text: str) -> float:
    return round(parse_duration(text) * 1000, 3)


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(f"{text[:20]!r} is no percentage", hint="--loss 10") from None


def format_shape(shape: Shape) -> str:
    """Return what a cable does, in the words of the flags."""
    words = []
    if shape.delay:
        spread = f"±{shape.jitter:g}" if shape.jitter else ""
        words.append(f"{shape.delay:g}{spread} ms")
    if shape.loss:
        words.append(f"{shape.loss:g} % lost")
    if shape.bandwidth:
        words.append(f"{shape.bandwidth} B/s")
    return ", ".join(words) or "-"
