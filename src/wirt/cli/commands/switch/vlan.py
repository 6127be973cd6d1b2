"""wirt switch vlan"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="SWITCH", help="name of the switch")
    parser.add_argument("vlans", metavar="PORT=VLAN,…", help="8=7t: port 8 carries 7 tagged")
    example(parser, "wirt switch vlan dmz 1=7,2=7", "wirt switch vlan dmz 8=7t")


def run(args: argparse.Namespace) -> int:
    """Put ports into VLANs, at once and for later."""
    from wirt.net.switch import parse_vlans
    from wirt.vm.context import Context
    from wirt.vm.network.switches import set_vlans

    record = set_vlans(Context(say=say), args.name, parse_vlans(args.vlans))
    if args.json:
        print_json({"name": args.name, "vlans": record.vlans})
    else:
        print(f"{args.name}: set {args.vlans}")
    return 0
