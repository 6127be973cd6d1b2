"""What the sub-commands have in common: their words, and the options of most of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wirt.cli.kvm_img.failure import Failure, Misuse
from wirt.cli.kvm_img.getopt import Grammar, Words, parse_words
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.opening import Opening

OPEN = {"object": "object:", "image-opts": "image-opts"}
SHARE = {"force-share": "U"}


def read_words(words: Sequence[str], short: str, long: Mapping[str, str]) -> Words:
    """Parse a sub-command's words; ``-h`` prints the help and ends."""
    parsed = parse_words(words, Grammar(short, {"help": "h", **long}))
    if parsed.has("h"):
        from wirt.cli.kvm_img.help import print_help

        print_help()
    return parsed


def one_file(parsed: Words) -> str:
    if len(parsed.operands) != 1:
        raise Misuse("Expecting one image file name")
    return parsed.operands[0]


def opening(parsed: Words, *, writable: bool = False, with_backing: bool = True) -> Opening:
    return Opening(
        writable=writable,
        with_backing=with_backing,
        force_share=parsed.has("U"),
        image_opts=parsed.has("image-opts"),
        secrets=Secrets(parsed.every("object")),
    )


def wants_json(parsed: Words) -> bool:
    """Return whether ``--output`` asks for JSON. Raises Failure for anything unknown."""
    output = parsed.last("output")
    if output not in {None, "json", "human"}:
        raise Failure("--output must be used with human or json as argument.")
    return output == "json"
