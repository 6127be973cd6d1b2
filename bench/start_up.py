"""What the command line costs before it does anything."""

from __future__ import annotations

import shutil
import sys
import tempfile

from bench.pairs import Row, compare, run
from wirt.store.layout import home_at
from wirt.vm.context import Context
from wirt.vm.create import Wish, create

TITLE = "Start-up of the command line"
ROUNDS = 21
MACHINES = 1000


def rows() -> list[Row]:
    bare = [sys.executable, "-c", "import argparse, json"]
    wirt = [sys.executable.replace("python3", "wirt").replace("python", "wirt")]
    root = tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp")
    env = {"WIRT_HOME": root}
    try:
        context = Context(home_at(root))
        for number in range(MACHINES):
            create(context, f"m{number:04}", None, Wish(disk_size=1 << 20))
        return [
            compare(
                f"wirt {' '.join(words)}{note}",
                lambda words=words: run([*wirt, *words], env),
                "python3 -c 'import argparse, json'",
                lambda: run(bare),
                rounds=ROUNDS,
                target=target,
            )
            for words, note, target in (
                (["--help"], "", "CPU < 1.5"),
                (["ls", "--json"], f" ({MACHINES} machines)", "CPU < 5"),
            )
        ]
    finally:
        shutil.rmtree(root)
