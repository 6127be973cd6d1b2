"""wirt run"""

from __future__ import annotations

import argparse
import sys

from wirt.cli.arguments import Parser, add_settings, example
from wirt.cli.commands.create import add_disk_options, wish_of
from wirt.cli.output import print_json, say
from wirt.errors import UsageError
from wirt.units import parse_duration
from wirt.vm import state
from wirt.vm.context import Context
from wirt.vm.oneshot import OneShot, bring_up, for_command, temporary
from wirt.vm.source import CdFile, resolve_or_build


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("--name", default="", help="name of the machine (made from the image's)")
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="for the guest to answer")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the guest")
    parser.add_argument(
        "--cold", action="store_true", help="boot, although a warm template could be forked"
    )
    parser.add_argument("-t", "--tty", action="store_true", help="COMMAND gets a terminal")
    add_disk_options(parser)
    add_settings(parser)
    parser.add_argument("image", metavar="IMAGE", help="debian:12, a disk image file, or FILE.iso")
    parser.add_argument(
        "command", metavar="-- COMMAND", nargs="*", default=[],
        help="run this in a fresh machine, then remove the machine",
    )  # fmt: skip
    example(
        parser,
        "wirt run debian:12 --name web -m 1G --cpus 2 -p 8080:80",
        "wirt run debian:12 -- sh -c 'uname -a; cat /etc/os-release'",
        "wirt run ./disk.qcow2 --format qcow2",
    )


def run(args: argparse.Namespace) -> int:
    """Make, start and await a machine; or run one command in one that is removed again."""
    context = Context(say=say)
    timeout = parse_duration(args.timeout)
    source = resolve_or_build(context, args.image, image_format=args.format)
    wish = wish_of(args)
    if not args.command:
        name = args.name or _name_from(args.image)
        waits = not args.no_wait and not isinstance(source, CdFile)
        bring_up(context, name, source, wish, timeout=timeout if waits else None)
        return _tell(context, name, as_json=args.json)
    if args.name:
        raise UsageError(
            "a machine that lives for one command has no name of its own",
            hint=f"wirt run {args.image} --name {args.name}, then wirt exec {args.name} -- …",
        )
    with temporary(
        context, source, for_command(source, wish), timeout=timeout, cold=args.cold,
        keep_port=True, meanwhile=_get_ready,
    ) as made:  # fmt: skip
        return _run_in_guest(context, made, args)


def _get_ready() -> None:
    """Import what runs the command while the machine starts."""
    from wirt.cli import terminal as _terminal  # noqa: F401 - only its import counts


def _run_in_guest(context: Context, made: OneShot, args: argparse.Namespace) -> int:
    from wirt.cli.terminal import run_in_guest, stdin_or_none, writer
    from wirt.vm.execute import Order

    order = Order(
        argv=args.command,
        stdin=stdin_or_none(),
        stdout=writer(sys.stdout.fileno()),
        stderr=writer(sys.stderr.fileno()),
    )
    return run_in_guest(context, made.name, order, terminal=args.tty, port=made.port)


def _name_from(image: str) -> str:
    import os
    import re

    base = os.path.basename(image).rsplit(".", 1)[0] if "/" in image or "." in image else image
    return re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip("-._")[:40] or "machine"


def _tell(context: Context, name: str, *, as_json: bool) -> int:
    found = state.look(context.home.vm(name))
    life = found.record.run
    if as_json:
        print_json(
            {
                "name": name,
                "status": found.status,
                "accelerator": life.accelerator if life else "",
                "reason": life.accelerator_reason if life else "",
                "forwards": life.forwards if life else (),
            }
        )
        return 0
    print(
        f"{name}: {found.status}"
        + (f", {life.accelerator} ({life.accelerator_reason})" if life else "")
    )
    for protocol, host, guest in life.forwards if life else ():
        print(f"  port {guest}/{protocol} of the guest is {host} on this host")
    print(f"  wirt exec {name} -- COMMAND; wirt console {name}; wirt stop {name}")
    return 0
