"""``kvm-img measure``."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.command import OPEN, SHARE, opening, read_words, wants_json
from wirt.cli.kvm_img.creation import options_of, parse_options
from wirt.cli.kvm_img.failure import Failure, failure_of, report
from wirt.cli.kvm_img.json_text import pretty
from wirt.cli.kvm_img.keyvalue import joined
from wirt.cli.kvm_img.making import Target
from wirt.cli.kvm_img.objects import Secrets
from wirt.cli.kvm_img.opening import known_format, open_named
from wirt.cli.kvm_img.sizes import size_argument
from wirt.cli.kvm_img.source_snapshot import check_snapshot_options, chosen_disk
from wirt.errors import WirtError
from wirt.image.base import Image
from wirt.image.measure import Measure, measure


def run(words: Sequence[str]) -> int:
    long = {"output": "output:", "size": "size:", **OPEN, **SHARE}
    parsed = read_words(words, "hf:O:o:l:U", long)
    options = joined(parsed.every("o"))
    check_snapshot_options(parsed.every("l"))
    as_json = wants_json(parsed)
    given = parsed.last("size")
    size = None if given is None else size_argument("image size", given)
    if len(parsed.operands) > 1:
        raise Failure("At most one filename argument is allowed.")
    name = parsed.operands[0] if parsed.operands else None
    if name is None and parsed.has("image-opts", "f", "l"):
        raise Failure("--image-opts, -f, and -l require a filename argument.")
    if name is not None and size is not None:
        raise Failure("--size N cannot be used together with a filename.")
    if name is None and size is None:
        raise Failure("Either --size N or one filename must be specified.")
    out = parsed.last("O") or "raw"
    if name is None:
        _print(_measured(out, options, size, None, Secrets()), as_json=as_json)
        return 0
    with open_named(name, parsed.last("f"), opening(parsed)) as opened:
        disk = chosen_disk(opened, parsed.last("l"))
        secrets = Secrets(parsed.every("object"))
        _print(_measured(out, options, None, disk, secrets, opened.image), as_json=as_json)
    return 0


def _measured(
    name: str,
    options: str | None,
    size: int | None,
    source: Image | None,
    secrets: Secrets,
    image: Image | None = None,
) -> Measure:
    known_format(name)
    known = options_of(name)
    try:
        given = parse_options(options or "", known)
    except Failure as failure:
        report(failure.message, hint=failure.hint)
        raise Failure(f"Invalid options for file format '{name}'") from failure
    if size is not None:
        given["size"] = str(size)
    if name not in {"raw", "qcow2", "luks"}:
        raise Failure(f"Block driver '{name}' does not support size measurement")
    target = Target(name, name, known, given, secrets)
    try:
        return measure(
            name,
            size=int(given.get("size", "0")),
            source=source,
            bitmaps_of=image,
            options=target.engine_options(),
        )
    except WirtError as error:
        raise failure_of(error) from error


def _print(result: Measure, *, as_json: bool) -> None:
    if as_json:
        members = {"required": result.required, "fully-allocated": result.fully_allocated}
        if result.bitmaps is not None:
            members["bitmaps"] = result.bitmaps
        print(pretty(members))
        return
    print(f"required size: {result.required}")
    print(f"fully allocated size: {result.fully_allocated}")
    if result.bitmaps is not None:
        print(f"bitmaps size: {result.bitmaps}")
