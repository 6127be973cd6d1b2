"""wirt switch show"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json, print_table, say
from wirt.units import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="SWITCH", help="name of the switch")
    parser.add_argument(
        "--as", dest="form", choices=["ifupdown", "systemd"],
        help="print what starts such a switch at boot without wirt",
    )  # fmt: skip
    example(parser, "wirt switch show dmz", "wirt switch show dmz --as ifupdown")


def run(args: argparse.Namespace) -> int:
    """Show ports with counters and VLANs, and the MAC table; a killed switch is mended first."""
    from wirt.vm.context import Context
    from wirt.vm.network.boot_text import switch_boot_text
    from wirt.vm.network.mend import mend
    from wirt.vm.network.switches import switch_facts

    context = Context(say=say)
    if args.form:
        print(switch_boot_text(context, args.name, args.form), end="")
        return 0
    mend(context)
    facts = switch_facts(context, args.name)
    if args.json:
        print_json(facts)
        return 0
    uplink = f", uplink {facts.uplink}" if facts.uplink else ""
    print(f"{facts.name}: {facts.status}{uplink}, sockets at {facts.sockets}")
    ports = [
        (
            str(port.number),
            str(port.vlan or "-"),
            " ".join(map(str, port.tagged)) or "-",
            f"{port.received_packets} / {format_size(port.received_bytes)}",
            f"{port.sent_packets} / {format_size(port.sent_bytes)}",
            ", ".join(port.plugs) or "-",
        )
        for port in facts.ports
    ]
    if ports:
        print_table(("PORT", "VLAN", "TAGGED", "RECEIVED", "SENT", "PLUG"), ports)
    if facts.addresses:
        rows = [(a.mac, str(a.port), str(a.vlan or "-"), f"{a.age} s") for a in facts.addresses]
        print_table(("ADDRESS", "PORT", "VLAN", "AGE"), rows)
    return 0
