"""wirt net create"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NETWORK", help="name of the new network")
    parser.add_argument(
        "--private", action="store_true",
        help="in a network namespace of its own: needs no root, and nothing outside changes",
    )  # fmt: skip
    parser.add_argument("--address", default="", metavar="IP/PREFIX", help="of the bridge")
    parser.add_argument("--interface", default="", metavar="NAME", help="name of the bridge")
    parser.add_argument("--no-dhcp", action="store_true", help="no addresses and no names")
    parser.add_argument("--isolated", action="store_true", help="no way out of the network")
    parser.add_argument("--persist", action="store_true", help="started by wirt autostart")
    example(
        parser,
        "wirt net create office --private",
        "wirt net create office --address 10.7.0.1/24   # root: a bridge of this host",
    )


def run(args: argparse.Namespace) -> int:
    """Make a bridge network: an address, DHCP and names for guests, and a way out."""
    from wirt.vm.context import Context
    from wirt.vm.network.bridges import BridgeWish, create_bridge

    wish = BridgeWish(
        address=args.address,
        interface=args.interface,
        private=args.private,
        dhcp=not args.no_dhcp,
        outside=not args.isolated,
        persist=args.persist,
    )
    record = create_bridge(Context(say=say), args.name, wish)
    if args.json:
        print_json({"name": args.name, "record": record})
    else:
        where = "in a private namespace" if record.private else "of this host"
        print(f"{args.name}: up, bridge {record.interface} {where}, {record.address}")
        print(f"  wirt nic add VM network={args.name}")
    return 0
