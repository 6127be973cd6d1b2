"""What the verbs of ``wirt img`` share: which files are opened, how, and with what secret."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wirt.cli.arguments import example
from wirt.errors import AlreadyExists, UsageError
from wirt.image.base import AllowLocalFiles, Budget, Deny, Image, OpenGate
from wirt.image.gate import Neighbours
from wirt.image.open import open_image
from wirt.image.registry import FORMATS
from wirt.store.layout import default_home

_LONGEST_SECRET = 1 << 20
NO_LIMITS = Budget(expansion=1 << 62, metadata_bytes=1 << 40)


def declare(
    parser: argparse.ArgumentParser, *examples: str, writes: bool = False, many: bool = False
) -> None:
    """Add the options that decide what is opened, and the examples."""
    group = parser.add_argument_group("which files are opened, and how")
    which = "the images" if many else "the image"
    group.add_argument(
        "--format", metavar="FORMAT", help=f"format of {which}, instead of what the bytes say"
    )
    group.add_argument(
        "--allow", action="append", default=[], metavar="PATH",
        help="open this file, or what lies below this directory, where an image names it; "
        "WIRT_ALLOW lists more of them, with colons between",
    )  # fmt: skip
    group.add_argument(
        "--allow-any", action="store_true", help="open whatever local file an image names"
    )
    group.add_argument(
        "--allow-none", action="store_true", help="open no file that only an image names"
    )
    group.add_argument(
        "--secret-file", metavar="FILE",
        help="passphrase of an encrypted image ('-': standard input); else it is asked for",
    )  # fmt: skip
    group.add_argument(
        "--no-limits", action="store_true",
        help="trust an image that declares far more data than it stores",
    )  # fmt: skip
    if not writes:
        group.add_argument(
            "-U", "--force-share", action="store_true",
            help="read although a machine writes it; what is read may be out of date",
        )  # fmt: skip
    example(parser, *examples)


class Access(msgspec.Struct):
    """How the files of one command are opened."""

    format: str | None
    gate: OpenGate
    budget: Budget
    force_share: bool
    secret_file: str | None
    _secret: bytes | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Access:
        return cls(
            format=args.format,
            gate=_gate(args),
            budget=NO_LIMITS if args.no_limits else Budget(),
            force_share=getattr(args, "force_share", False),
            secret_file=args.secret_file,
        )

    def open(
        self,
        path: str,
        *,
        format: str | None = None,  # noqa: A002 - see open_image
        needs_secret: bool = True,
        **options: bool,
    ) -> Image:
        """Open an image; the passphrase of an encrypted one is asked for."""
        options.setdefault("force_share", self.force_share)
        image = self._open(path, format, **options)
        if needs_secret and image.info().encrypted and self._secret is None:
            image.close()
            self.secret(path)
            image = self._open(path, format, **options)
        return image

    def look_at(self, path: str, *, with_backing: bool = True) -> Image:
        """Open for its metadata only: without passphrase, and also if it is in use."""
        return self._open(path, None, with_backing=with_backing, force_share=True, allow_dirty=True)

    def _open(self, path: str, name: str | None, **options: Any) -> Image:
        return open_image(
            path,
            format=name or self.format,
            gate=self.gate,
            budget=self.budget,
            secret=self._secret,
            **options,
        )

    def secret_of(self, path: str) -> bytes | None:
        """Return the passphrase, if the image at ``path`` needs one."""
        with open_image(
            path, format=self.format, gate=self.gate, with_backing=False, force_share=True
        ) as image:
            encrypted = image.info().encrypted
        return self.secret(path) if encrypted else None

    def secret(self, path: str) -> bytes:
        if self._secret is None:
            self._secret = read_secret(self.secret_file, f"passphrase of {path}")
        return self._secret


def _gate(args: argparse.Namespace) -> OpenGate:
    if args.allow_any:
        return AllowLocalFiles()
    if args.allow_none:
        return Deny()
    listed = [path for path in os.environ.get("WIRT_ALLOW", "").split(":") if path]
    return Neighbours([*args.allow, *listed], homes=[default_home().root])


def read_secret(path: str | None, what: str) -> bytes:
    """Return a passphrase from a file (a line's end is no part of it) or the terminal."""
    if path is None:
        if not sys.stdin.isatty():
            raise UsageError(f"the {what} is needed", hint="--secret-file FILE")
        from getpass import getpass

        return getpass(f"{what}: ").encode()
    try:
        if path == "-":
            secret = sys.stdin.buffer.read(_LONGEST_SECRET)
        else:
            with open(path, "rb") as file:
                secret = file.read(_LONGEST_SECRET)
    except OSError as error:
        raise UsageError(f"--secret-file {path}: {error.strerror}") from error
    return secret.removesuffix(b"\n").removesuffix(b"\r")


def new_secret(path: str | None, what: str) -> bytes:
    """Return a passphrase for something new; a person types it twice."""
    secret = read_secret(path, f"new passphrase of {what}")
    if path is None and read_secret(None, "same passphrase again") != secret:
        raise UsageError("the passphrases differ", hint="type the same one twice")
    if not secret:
        raise UsageError("an empty passphrase protects nothing")
    return secret


def add_options(parser: argparse.ArgumentParser, *, metavar: str = "KEY=VALUE") -> None:
    parser.add_argument(
        "-o", "--option", dest="options", action="append", default=[], metavar=metavar,
        help="option of the format, as qemu-img has them: -o cluster_size=2M",
    )  # fmt: skip


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Return ``-o a=1,b=2`` as a dictionary; two commas stand for one in a value."""
    options = {}
    for text in texts:
        for part in text.replace(",,", "\0").split(","):
            key, equals, value = part.replace("\0", ",").partition("=")
            if not equals or not key:
                raise UsageError(f"-o {text!r}: KEY=VALUE is expected")
            options[key] = value
    return options


def format_for(path: str, chosen: str | None) -> str:
    """Return the format of a file to be made: as chosen, else by its suffix, else qcow2."""
    if chosen:
        return chosen
    return next((known.name for known in FORMATS if path.endswith(known.suffixes)), "qcow2")


def refuse_existing(path: str, *, force: bool) -> None:
    """Raise AlreadyExists unless the user wants the file replaced."""
    if not force and os.path.lexists(path):
        raise AlreadyExists(f"{path} exists", hint="choose another name, or replace it: --force")


def with_secret(options: Mapping[str, str], secret: bytes) -> dict[str, str]:
    """Return creation options that encipher a new image with ``secret``."""
    return {**options, "encrypt.secret": secret.decode("utf-8", "surrogateescape")}
