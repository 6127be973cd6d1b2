"""wirt net map"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--svg", action="store_true", help="as a picture")
    example(parser, "wirt net map", "wirt net map --svg > networks.svg")


def run(args: argparse.Namespace) -> int:
    """Draw machines, cards, switches, cables and networks, with addresses and traffic."""
    from wirt.vm.context import Context
    from wirt.vm.network.drawing import svg, text
    from wirt.vm.network.survey import survey

    found = survey(Context())
    if args.json:
        print_json(found)
    elif args.svg:
        print(svg(found))
    else:
        for line in text(found):
            print(printable(line))
    return 0
