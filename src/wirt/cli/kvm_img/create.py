"""``kvm-img create``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wirt.cli.kvm_img.command import read_words
from wirt.cli.kvm_img.failure import Failure, Misuse
from wirt.cli.kvm_img.keyvalue import asks_for_help, joined
from wirt.cli.kvm_img.making import Target, print_option_help
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.sizes import size_argument


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "F:b:f:ho:que6", {"object": "object:"})
    secrets = Secrets(parsed.every("object"))
    format_name = parsed.last("f") or "raw"
    options = joined(parsed.every("o"))
    operands = parsed.operands
    if options and asks_for_help(options):
        return print_option_help(operands[0] if operands else None, format_name)
    if not operands:
        raise Misuse("Expecting image file name")
    name = operands[0]
    size = size_argument("image size", operands[1]) if len(operands) > 1 else None
    if len(operands) > 2:
        raise Misuse(f"Unexpected argument: {operands[2]}")
    if parsed.has("e"):
        raise Failure(
            "-e (AES encryption) is no more: it was insecure",
            hint="Use LUKS: --object secret,id=s,file=PATH -o encrypt.format=luks,"
            "encrypt.key-secret=s\n",
        )
    if parsed.has("6"):
        options = f"{options},compat6=on" if options else "compat6=on"
    try:
        target = Target.plan(
            name,
            format_name,
            options,
            size=size,
            backing=parsed.last("b"),
            backing_format=parsed.last("F"),
            open_backing=not parsed.has("u"),
            secrets=secrets,
        )
        if not parsed.has("q"):
            print(target.announcement())
            sys.stdout.flush()
        target.make()
    except Failure as failure:
        raise failure.prefixed(f"{name}: ") from failure
    return 0
