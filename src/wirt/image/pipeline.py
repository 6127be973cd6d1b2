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
    weight: int = 0
    """How much memory it holds until it is finished; 0 is not worth a thread."""


def finished(jobs: Iterator[Job], workers: int) -> Iterator[int]:
    """Do the jobs in order; yield each job's end.

    Threads prepare what has weight: a weight of two per worker ahead, or two jobs if that is
    more.
    """
    pool = ThreadPoolExecutor(max(1, workers), "image")
    waiting: deque[tuple[Job, Future[Any] | None]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(job.prepare) if job.weight else None))
            while waiting and (waiting[0][1] is None or _is_enough(waiting, workers)):
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _is_enough(waiting: deque[tuple[Job, Future[Any] | None]], workers: int) -> bool:
    return len(waiting) > 2 and sum(job.weight for job, _ in waiting) > 2 * workers


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
