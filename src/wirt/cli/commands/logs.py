"""wirt logs"""

from __future__ import annotations

import argparse
import sys

from wirt.cli.arguments import add_machine, example


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the machine ends")
    parser.add_argument("--qemu", action="store_true", help="what QEMU said, not the guest")
    parser.add_argument("--raw", action="store_true", help="also what terminals would obey")
    example(parser, "wirt logs web", "wirt logs -f web", "wirt logs --qemu web")


def run(args: argparse.Namespace) -> int:
    """Print the guest's console, or QEMU's messages. A guest's control codes are dropped."""
    from wirt.vm import logs
    from wirt.vm.context import Context

    source = logs.follow if args.follow else logs.read
    clean = not args.raw and sys.stdout.isatty()
    for data in source(Context(), args.name, qemu=args.qemu):
        sys.stdout.buffer.write(_harmless(data) if clean else data)
        sys.stdout.buffer.flush()
    return 0


def _harmless(data: bytes) -> bytes:
    import re

    without_sequences = re.sub(rb"\x1b(\][^\x07\x1b]*|\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])", b"", data)
    return re.sub(rb"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f\x80-\x9f]", b"", without_sequences)
