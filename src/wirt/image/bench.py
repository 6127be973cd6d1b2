"""Timing many requests on one image, as ``qemu-img bench`` does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from wirt.errors import OutOfBounds, UsageError
from wirt.image.base import Image, WritableImage

_MOST_THREADS = 64


class Requests(msgspec.Struct, frozen=True):
    """What to send: ``count`` requests of ``size`` bytes, ``depth`` at a time."""

    count: int = 75_000
    depth: int = 64
    offset: int = 0
    size: int = 4096
    step: int = 0
    """Bytes from one request to the next; 0 means one behind the other."""
    write: bool = False
    pattern: int = 0
    flush_interval: int = 0
    """Flush after so many writes; 0 means only at the end."""


def bench(image: Image, requests: Requests) -> float:
    """Send the requests, over and over through the disk; return the seconds that they took.

    Raises ImageError, and UsageError for requests that the disk cannot hold.
    """
    step = requests.step or requests.size
    room = image.virtual_size - requests.size - requests.offset
    if requests.size <= 0 or requests.offset < 0 or room < 0:
        raise OutOfBounds("a request reaches past the end of the disk")
    if requests.count < 1 or requests.depth < 1:
        raise UsageError("count and depth must be at least 1")
    if requests.write and not isinstance(image, WritableImage):
        raise UsageError(f"{image.format_name} images cannot be written")
    data = bytes([requests.pattern]) * requests.size
    # As QEMU: a request that would not fit begins again from the start of the disk.
    period = image.virtual_size - requests.size + 1

    def send(number: int) -> None:
        offset = (requests.offset + number * step) % period
        if not isinstance(image, WritableImage) or not requests.write:
            image.pread(offset, requests.size)
            return
        image.pwrite(offset, data)
        if requests.flush_interval and number % requests.flush_interval == 0:
            image.flush()

    numbers = iter(range(requests.count))

    def work() -> None:
        for number in numbers:  # shared by all: each takes the next
            send(number)

    started = time.perf_counter()
    threads = min(requests.depth, _MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
    if requests.write and isinstance(image, WritableImage):
        image.flush()
    return time.perf_counter() - started
