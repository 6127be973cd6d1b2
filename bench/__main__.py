"""``make bench``: run every bench, print its rows. ``python -m bench NAME`` runs one."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from bench.pairs import Row, print_rows

BENCHES = ("start_up", "first_answer", "images", "nbd", "forking", "networks")


def main() -> int:
    # As it is installed: compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    names = sys.argv[1:] or BENCHES
    for name in names:
        module = import_module(f"bench.{name}")
        rows: list[Row] = module.rows()
        print_rows(module.TITLE, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
