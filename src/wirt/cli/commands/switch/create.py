"""wirt switch create"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="SWITCH", help="name of the new switch")
    parser.add_argument("--ports", type=int, default=32, metavar="N", help="number of ports (32)")
    parser.add_argument(
        "--vlans", default="", metavar="PORT=VLAN,…", help="802.1Q; 8=7t: port 8 carries 7 tagged"
    )
    parser.add_argument(
        "--uplink", default="none", metavar="WHERE",
        help="none, tap[=NAME], bridge=BRIDGE (both need root), network=NAME",
    )  # fmt: skip
    parser.add_argument("--persist", action="store_true", help="started by wirt autostart")
    example(
        parser,
        "wirt switch create dmz",
        "wirt switch create lan --uplink bridge=br0 --persist",
        "wirt switch create trunk --vlans 1=7,2=7,8=7t,8=9t",
    )


def run(args: argparse.Namespace) -> int:
    """Make a switch and start it."""
    from wirt.net.switch import parse_vlans
    from wirt.vm.context import Context
    from wirt.vm.network.switches import SwitchWish, create_switch, switch_facts

    context = Context(say=say)
    wish = SwitchWish(args.ports, parse_vlans(args.vlans), args.uplink, args.persist)
    create_switch(context, args.name, wish)
    facts = switch_facts(context, args.name)
    if args.json:
        print_json(facts)
    else:
        print(f"{args.name}: up, {args.ports} ports, sockets at {facts.sockets}")
        print(f"  wirt nic plug VM nic0 switch={args.name}; wirt switch show {args.name}")
    return 0
