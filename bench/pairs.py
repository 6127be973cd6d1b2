"""Pairwise measurement: ours and the peer in turn, so that a busy host hits both alike."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MEASURABLE = 0.001  # seconds of CPU: a ratio to less says nothing


@dataclass(frozen=True)
class Sample:
    """Seconds of wall time and of CPU time (children included)."""

    wall: float
    cpu: float
    peak: float = 0
    """Largest memory in MiB, where it was measured."""


@dataclass(frozen=True)
class Row:
    """One comparison: medians of the ratios ours / peer, and what was aimed at.

    No ratio of CPU times where that of the peer is too small to be measured.
    """

    what: str
    peer: str
    cpu_ratio: float | None
    wall_ratio: float
    wall: float
    rounds: int
    target: str
    peak: float = 0


def run(argv: Sequence[str], env: dict[str, str] | None = None) -> Sample:
    """Measure one run of a program that must succeed."""
    before, start = _cpu_of_children(), time.perf_counter()
    subprocess.run(
        argv, env={**os.environ, **(env or {})}, check=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return Sample(time.perf_counter() - start, _cpu_of_children() - before)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(
    what: str,
    ours: Callable[[], Sample],
    peer_name: str,
    peer: Callable[[], Sample],
    *,
    rounds: int,
    target: str,
    with_cpu: bool = True,
    warm_up: int = 1,
) -> Row:
    """Measure both in turn, after ``warm_up`` rounds that are thrown away."""
    pairs = [(ours(), peer()) for _ in range(rounds + warm_up)][warm_up:]
    cpu = [one.cpu / other.cpu for one, other in pairs if other.cpu >= _MEASURABLE]
    return Row(
        what=what,
        peer=peer_name,
        cpu_ratio=statistics.median(cpu) if cpu and with_cpu else None,
        wall_ratio=statistics.median(one.wall / other.wall for one, other in pairs),
        wall=statistics.median(one.wall for one, _ in pairs),
        rounds=rounds,
        target=target,
        peak=max(one.peak for one, _ in pairs),
    )


def print_rows(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    heads = ("CPU x", "wall x", "wall s", "n", "MiB")
    print("{:<40} {:<38} {:>6} {:>7} {:>8} {:>3} {:>5}  target".format("what", "against", *heads))
    for row in rows:
        cpu = f"{row.cpu_ratio:.2f}" if row.cpu_ratio is not None else "-"
        print(
            f"{row.what:<40} {row.peer:<38} {cpu:>6} {row.wall_ratio:>7.2f} {row.wall:>8.3f} "
            f"{row.rounds:>3} {f'{row.peak:.0f}' if row.peak else '-':>5}  {row.target}"
        )
