"""``kvm-img info``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words, wants_json
from wirt.cli.kvm_img.description import describe, text_of
from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.json_text import pretty
from wirt.cli.kvm_img.opening import Opening, open_named


def run(words: Sequence[str]) -> int:
    parsed = read_words(
        words,
        "f:hU",
        {"format": "f:", "output": "output:", "backing-chain": "chain", **OPEN, **SHARE},
    )
    name = one_file(parsed)
    as_json = wants_json(parsed)
    how = replace(opening(parsed, with_backing=False), looks_only=True)
    chain = _collect(name, parsed.last("f"), how, whole=parsed.has("chain"))
    if not as_json:
        print("\n".join(text_of(layer) for layer in chain), end="")
    else:
        print(pretty(chain if parsed.has("chain") else chain[0]))
    return 0


def _collect(
    name: str, format_name: str | None, how: Opening, *, whole: bool
) -> list[dict[str, Any]]:
    """Return what there is to say of the image, or of each layer of its chain."""
    layers: list[dict[str, Any]] = []
    seen: set[str] = set()
    while True:
        if name in seen:
            raise Failure(f"Backing file '{name}' creates an infinite loop.")
        seen.add(name)
        with open_named(name, format_name, how) as opened:
            layer = describe(opened)
        layers.append(layer)
        if not whole or "backing-filename" not in layer:
            return layers
        if "full-backing-filename" not in layer:
            raise Failure(
                "Could not determine absolute backing filename, but backing filename "
                f"'{layer['backing-filename']}' present"
            )
        name = layer["full-backing-filename"]
        format_name = layer.get("backing-filename-format")
        how = replace(how, image_opts=False)
