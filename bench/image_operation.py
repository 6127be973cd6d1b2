"""One image operation in a process of its own, which times itself: no start-up, no imports.

``python -m bench.image_operation NAME ARGUMENT...`` prints {"wall", "cpu", "peak"}: seconds,
and MiB of memory at most.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from wirt.image.base import AllowLocalFiles
from wirt.image.commit import commit
from wirt.image.compare import compare
from wirt.image.convert import ConvertSettings, convert
from wirt.image.extents import chain_extents
from wirt.image.open import open_image
from wirt.image.rebase import rebase
from wirt.image.registry import FORMATS


def _convert(source: str, target: str, name: str, settings: str, from_: str = "") -> None:
    with open_image(source, format=from_ or None, gate=AllowLocalFiles()) as image:
        convert([image], target, name, ConvertSettings(**json.loads(settings)))


def _compare(first: str, second: str) -> None:
    with open_image(first) as one, open_image(second) as other:
        if not compare(one, other).identical:
            raise SystemExit("the images differ")


def _commit(path: str) -> None:
    commit(path)


def _rebase(path: str, backing: str) -> None:
    rebase(path, backing, backing_format="raw")


def _map(path: str) -> None:
    with open_image(path) as image:
        for _ in chain_extents(image):
            pass


def _check(path: str) -> None:
    with open_image(path) as image:
        result: Any = image.check()  # type: ignore[attr-defined]  # qcow2 is Checkable
        if result.corruptions:
            raise SystemExit("the image is corrupt")


def _import(name: str) -> None:
    """What probing and a large check import is start-up too."""
    list(FORMATS)
    if name in {"check", "map"}:
        import numpy as np  # noqa: F401 - only its import counts


OPERATIONS = {
    "convert": _convert,
    "compare": _compare,
    "commit": _commit,
    "rebase": _rebase,
    "map": _map,
    "check": _check,
}


def main() -> None:
    name, *arguments = sys.argv[1:]
    _import(name)
    cpu, started = time.process_time(), time.perf_counter()
    OPERATIONS[name](*arguments)  # type: ignore[operator]  # each takes its own arguments
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": _peak()}))


def _peak() -> float:
    """Return MiB. ``getrusage`` would count what the parent had before it started us."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
