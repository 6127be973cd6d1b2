"""wirt img eject"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json
from wirt.image.eject import close_tray, eject


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("drive", metavar="DEVICE", help="drive of this host: /dev/sr0")
    parser.add_argument("--close", action="store_true", help="close the tray instead")
    example(parser, "wirt img eject /dev/sr0", "wirt img eject --close /dev/sr0")


def run(args: argparse.Namespace) -> int:
    """Open or close a drive that nobody uses; what a killed program locked is unlocked."""
    state = close_tray(args.drive) if args.close else eject(args.drive)
    tray, disc = (state.tray, state.disc) if state else ("", "")
    if args.json:
        print_json({"drive": args.drive, "tray": tray, "disc": disc})
    elif args.close:
        print(f"{args.drive}: closed, disc: {disc or 'unknown'}")
    else:
        print(f"{args.drive}: {'tray open' if tray == 'open' else 'ejected'}")
    return 0
