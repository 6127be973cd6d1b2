"""Pairwise measurement: ours and the peer in turn, so that a busy host hits both alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Seconds of wall time and of CPU time (children included)."""

    wall: float
    cpu: float
    peak: float = 0
    """Largest memory in MiB, where it was measured."""


@dataclass(frozen=True)
class Row:
    """One comparison: medians of the ratios ours / peer, and what was aimed at."""

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
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        argv, env={**os.environ, **(env or {})}, check=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    return Sample(wall, cpu - before.children_user - before.children_system)


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
    cpu = [one.cpu / other.cpu for one, other in pairs if other.cpu]
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
