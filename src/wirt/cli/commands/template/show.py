"""wirt template show"""

from __future__ import annotations

import argparse
import time

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable
from wirt.store.states import find_state
from wirt.store.templates import read_template
from wirt.units import format_size
from wirt.vm.context import Context
from wirt.vm.template import row_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("template", metavar="TEMPLATE", help="its name, or the beginning of it")
    example(parser, "wirt template show 3f2a")


def run(args: argparse.Namespace) -> int:
    """Show one warm image: what it was made of, and what it takes."""
    context = Context()
    template = read_template(context.home, args.template)
    row = row_of(context, template)
    manifest = find_state(context.home, template.state).manifest
    if args.json:
        print_json({"template": row, "image_id": template.image_id, "state": manifest})
        return 0
    qemu = ".".join(map(str, manifest.qemu.version))
    lines = {
        "template": template.fingerprint,
        "image": f"{template.image} ({template.image_id[:12]})",
        "state": template.state,
        "made": time.ctime(template.created),
        "used": time.ctime(row.used),
        "memory": format_size(template.memory),
        "vcpus": str(template.vcpus),
        "accelerator": f"{manifest.accelerator}, {manifest.cpu}",
        "QEMU": f"{qemu} {manifest.qemu.package}",
        "on disk": format_size(row.on_disk),
        "fits": "yes" if row.fits else "no: the next run makes another",
    }
    for name, value in lines.items():
        print(f"{name + ':':<13}{printable(value)}")
    return 0
