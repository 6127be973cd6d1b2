"""wirt nic add"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    parser.add_argument("backend", metavar="BACKEND", help="user, network=NAME, switch=NAME …")
    parser.add_argument("--model", default="virtio", help="card that the guest sees (virtio)")
    parser.add_argument("--mac", default="", help="its address (made by wirt)")
    parser.add_argument("--id", default="", metavar="CARD", help="its name (nicN)")
    example(
        parser,
        "wirt nic add web switch=dmz,vlan=7",
        "wirt nic add web network=office --model e1000",
        "wirt nic add web socket,listen=127.0.0.1:7000",
    )


def run(args: argparse.Namespace) -> int:
    """Give a machine another network card, also while it runs."""
    import msgspec

    from wirt.errors import UsageError
    from wirt.spec.backend_text import parse_backend
    from wirt.spec.nic import Nic
    from wirt.vm.context import Context
    from wirt.vm.network.nics import add_nic

    tree = {"model": args.model, "mac": args.mac, "id": args.id}
    try:
        nic = msgspec.convert(tree, Nic)
    except msgspec.ValidationError as error:
        raise UsageError(f"no such card: {error}", hint="wirt nic add --help") from error
    nic = msgspec.structs.replace(nic, backend=parse_backend(args.backend))
    card = add_nic(Context(say=say), args.name, nic)
    if args.json:
        print_json({"name": args.name, "card": card})
    else:
        print(f"{args.name}: {card} added, on {args.backend}")
    return 0
