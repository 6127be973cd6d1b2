"""wirt img serve"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from wirt.cli.image_access import Access, declare
from wirt.cli.output import print_json, printable, warn
from wirt.errors import UnsupportedImage, UsageError
from wirt.image.base import HasSnapshots, Image
from wirt.image.nbd_server.export import Export
from wirt.image.nbd_server.listen import Listening, listening_tcp, listening_unix
from wirt.image.nbd_server.server import HANDSHAKE_SECONDS, MOST_CLIENTS, Limits, Server
from wirt.protocols.nbd.codec import DEFAULT_PORT
from wirt.protocols.nbd.line import Tls

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, of any format")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--unix", metavar="PATH", help="listen on a unix socket, for you only")
    where.add_argument("--tcp", metavar="HOST[:PORT]", help=f"listen on TCP (port {DEFAULT_PORT})")
    parser.add_argument(
        "--export", action="append", default=[], metavar="NAME",
        help="name of the export; once for each image (one image: empty, several: file names)",
    )  # fmt: skip
    parser.add_argument("-r", "--read-only", action="store_true", help="clients cannot write")
    parser.add_argument(
        "--write-back", action="store_true",
        help="fat:rw:DIRECTORY: at the end, bring what clients changed into the directory",
    )  # fmt: skip
    parser.add_argument("--snapshot", metavar="NAME", help="serve this snapshot, read-only")
    parser.add_argument(
        "--bitmap", action="append", default=[], metavar="NAME",
        help="tell clients what this dirty bitmap marks",
    )  # fmt: skip
    parser.add_argument("--description", default="", metavar="TEXT", help="shown in lists")
    parser.add_argument(
        "-t", "--persistent", action="store_true", help="stay when the last client has gone"
    )
    secure = parser.add_mutually_exclusive_group()
    secure.add_argument(
        "--tls-x509",
        metavar="DIR",
        help="TLS with ca-cert.pem, server-cert.pem, server-key.pem",
    )
    secure.add_argument(
        "--tls-psk", metavar="FILE", help="TLS with shared keys (USER:HEX-KEY lines)"
    )
    parser.add_argument("--clients", type=int, default=MOST_CLIENTS, metavar="N", help="at most")
    declare(
        parser,
        "wirt img serve --unix /tmp/disk.sock old.vmdk",
        "wirt img serve --unix /tmp/disk.sock --write-back fat:rw:./share",
        "wirt img serve --tcp 10.0.0.1 --tls-x509 /etc/pki/nbd -r -t a.qcow2 b.vhdx",
        many=True,
    )


def run(args: argparse.Namespace) -> int:
    """Serve images as live disks over NBD, until Ctrl-C or the last client has gone."""
    tls = _tls(args)
    access = Access.of(args)
    with ExitStack() as stack:
        exports = _exports(stack, access, args)
        listening = stack.enter_context(_listen(args))
        server = Server(
            listening.socket,
            exports,
            tls=tls,
            persistent=args.persistent,
            limits=Limits(clients=max(1, args.clients), handshake=HANDSHAKE_SECONDS),
        )
        with _ended_by_signals(server):
            _announce(args, listening, exports, secure=tls is not None)
            server.run()
        for export in exports:
            _end_directory(export.image, write_back=args.write_back)
    return 0


def _end_directory(image: Image, *, write_back: bool) -> None:
    """Bring what clients wrote into a directory back, or say that it is forgotten."""
    if image.format_name != "vvfat":
        return
    from wirt.image.formats.vvfat import VvfatImage, apply_changes

    if not isinstance(image, VvfatImage) or not image.changed:
        return
    if not write_back:
        warn(f"{image.tree.directory}: what clients wrote is forgotten (--write-back keeps it)")
        return
    made = apply_changes(image)
    for word, paths in (("added", made.added), ("changed", made.modified), ("gone", made.removed)):
        for path in paths:
            print(printable(f"{word}: {path}"))


@contextmanager
def _ended_by_signals(server: Server) -> Iterator[None]:
    """Ctrl-C and SIGTERM are how a server ends: what was begun is finished and flushed."""
    before = {
        number: signal.signal(number, lambda *_: server.stop())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tls(args: argparse.Namespace) -> Tls | None:
    if not args.tls_x509 and not args.tls_psk:
        return None
    from wirt.protocols.nbd import tls

    return tls.server_x509(args.tls_x509) if args.tls_x509 else tls.server_psk(args.tls_psk)


def _exports(stack: ExitStack, access: Access, args: argparse.Namespace) -> list[Export]:
    read_only = args.read_only or bool(args.snapshot)
    made = []
    for name, path in zip(_names(args), args.images, strict=True):
        image = stack.enter_context(access.open(path, writable=not read_only))
        if not read_only and image.format_name == "raw" and not access.format:
            raise UsageError(
                f"{path} looks like a raw disk, and what is written to it could change its looks",
                hint="if it is one: --format raw; if it is not to be written: --read-only",
            )
        disk = _snapshot(image, path, args.snapshot) if args.snapshot else image
        made.append(
            Export(
                name, disk, read_only=read_only, description=args.description, bitmaps=args.bitmap
            )
        )
    return made


def _snapshot(image: Image, path: str, name: str) -> Image:
    if not isinstance(image, HasSnapshots):
        raise UnsupportedImage(f"{image.format_name} images have no snapshots", path=path)
    return image.snapshot_view(name)


def _names(args: argparse.Namespace) -> Sequence[str]:
    """Return the export's name for each image."""
    images: list[str] = args.images
    if not args.export:
        return [""] if len(images) == 1 else [os.path.basename(path) for path in images]
    if len(args.export) != len(images):
        raise UsageError(f"{len(images)} images, but {len(args.export)} names of exports")
    names: list[str] = args.export
    return names


def _listen(args: argparse.Namespace) -> AbstractContextManager[Listening]:
    if args.unix:
        return listening_unix(args.unix)
    if not args.tcp:
        raise UsageError("where?", hint="--unix PATH, or --tcp HOST:PORT")
    host, port = _host_and_port(args.tcp)
    if host not in _LOOPBACK and not (args.tls_x509 or args.tls_psk):
        warn(f"whoever reaches {args.tcp} can use these disks: think of --tls-x509")
    return listening_tcp(host, port)


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"{text!r} is no address", hint="HOST:PORT, or [IPV6]:PORT")
    return host.strip("[]"), int(port)


def _announce(
    args: argparse.Namespace, listening: Listening, exports: Sequence[Export], *, secure: bool
) -> None:
    """Say where the exports are, now that clients can come."""
    uris = [listening.uri(export.name, tls=secure) for export in exports]
    if args.json:
        print_json({"uris": uris, "read_only": [export.read_only for export in exports]})
    else:
        for uri, export, path in zip(uris, exports, args.images, strict=True):
            print(printable(f"{path}: {uri}{' (read-only)' if export.read_only else ''}"))
    sys.stdout.flush()  # a program waits for this line before it connects
