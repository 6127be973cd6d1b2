"""Work in order with some of it done ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One piece of work: ``prepare`` may run in a thread, ``finish`` runs in order."""

    end: int
    """How far the work is when this piece is done."""
    prepare: Callable[[], Any]
    finish: Callable[[Any], None]
    heavy: bool = False
    """Worth a thread."""


def finished(jobs: Iterator[Job], workers: int) -> Iterator[int]:
    """Do the jobs in order, heavy ones at most two per worker ahead; yield each job's end."""
    pool = ThreadPoolExecutor(max(1, workers), "image")
    waiting: deque[tuple[Job, Future[Any] | None]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(job.prepare) if job.heavy else None))
            while waiting and (len(waiting) > 2 * workers or waiting[0][1] is None):
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(job: Job, prepared: Future[Any] | None) -> int:
    job.finish(job.prepare() if prepared is None else prepared.result())
    return job.end


def nothing_more(_: object) -> None:
    """All was done in ``prepare``."""


def cut(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) pieces that end on multiples of ``step``."""
    while start < end:
        stop = min(end, (start // step + 1) * step)
        yield start, stop
        start = stop
