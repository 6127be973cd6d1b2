"""``kvm-img bench``."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.cache import check_cache
from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words
from wirt.cli.kvm_img.failure import Failure, failure_of
from wirt.cli.kvm_img.getopt import Words
from wirt.cli.kvm_img.opening import open_named
from wirt.cli.kvm_img.sizes import INT_MAX, number_argument, size_argument
from wirt.errors import WirtError
from wirt.image.bench import Requests, bench

_AIO = frozenset({"threads", "native", "io_uring"})


def run(words: Sequence[str]) -> int:
    long = {
        "flush-interval": "flush-interval:",
        "pattern": "pattern:",
        "no-drain": "no-drain",
        "image-opts": OPEN["image-opts"],
        **SHARE,
    }
    parsed = read_words(words, "hc:d:f:ni:o:qs:S:t:wU", long)
    requests = _requests(parsed)
    name = one_file(parsed)
    if requests.flush_interval and not requests.write:
        raise Failure("--flush-interval is only available in write tests")
    if requests.flush_interval and requests.flush_interval < requests.depth:
        raise Failure("Flush interval can't be smaller than depth")
    with open_named(name, parsed.last("f"), opening(parsed, writable=requests.write)) as opened:
        kind = "write" if requests.write else "read"
        print(
            f"Sending {requests.count} {kind} requests, {requests.size} bytes each, "
            f"{requests.depth} in parallel (starting at offset {requests.offset}, step size "
            f"{requests.step or requests.size})"
        )
        if requests.flush_interval:
            print(f"Sending flush every {requests.flush_interval} requests")
        try:
            seconds = bench(opened.image, requests)
        except WirtError as error:
            raise failure_of(error).prefixed("Failed request: ") from error
    print(f"Run completed in {seconds:3.3f} seconds.")
    return 0


def _requests(parsed: Words) -> Requests:
    aio = parsed.last("i")
    if aio is not None and aio not in _AIO:
        raise Failure(f"Invalid aio option: {aio}")
    mode = parsed.last("t")
    try:
        check_cache(mode)
    except Failure:
        raise Failure("Invalid cache mode") from None
    return Requests(
        count=_number(parsed, "c", "request count", 75_000),
        depth=_number(parsed, "d", "queue depth", 64),
        offset=size_argument("offset", parsed.last("o") or "0"),
        size=size_argument("buffer size", parsed.last("s") or "4096", 0, INT_MAX),
        step=size_argument("step_size", parsed.last("S") or "0", 0, INT_MAX),
        write=parsed.has("w"),
        pattern=_number(parsed, "pattern", "pattern byte", 0, 0xFF),
        flush_interval=_number(parsed, "flush-interval", "flush interval", 0),
    )


def _number(parsed: Words, option: str, what: str, default: int, most: int = INT_MAX) -> int:
    text = parsed.last(option)
    value = default if text is None else number_argument(text, most)
    if value is None:
        raise Failure(f"Invalid {what} specified")
    return value
