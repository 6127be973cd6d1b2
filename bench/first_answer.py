"""From nothing to a QEMU that answers QMP: ``wirt start`` against the same line by hand.

By hand: the command line that wirt shows is started, and a client waits for the answer to
``query-status`` on its socket, in the same way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time

from bench.pairs import Row, Sample, compare
from wirt.protocols.qmp.client import QmpClient
from wirt.store.layout import home_at
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.inspect import argv
from wirt.vm.start import start
from wirt.vm.stop import stop

TITLE = "Process start to QMP answer (TCG or KVM alike: the guest has not run)"
ROUNDS = 15


def rows() -> list[Row]:
    root = tempfile.mkdtemp(prefix="wirt-bench-", dir="/var/tmp")
    os.chmod(root, 0o711)
    context = Context(home_at(root))
    try:
        create(context, "one", None, Wish(settings={"memory": "512M"}, disk_size=1 << 20))
        start(context, "one", paused=True)
        line = argv(context, "one")
        stop(context, "one", force=True)
        return [
            compare(
                "wirt.start(), machine in prelaunch",
                lambda: _by_wirt(context),
                "the same line typed by hand",
                lambda: _by_hand(context, line),
                rounds=ROUNDS,
                target="wall <= 1.3",
                with_cpu=False,
            )
        ]
    finally:
        stop(context, "one", force=True)
        shutil.rmtree(root)


def _by_wirt(context: Context) -> Sample:
    begin = time.perf_counter()
    start(context, "one", paused=True)
    wall = time.perf_counter() - begin
    stop(context, "one", force=True)
    return Sample(wall, 0)


def _by_hand(context: Context, line: list[str]) -> Sample:
    from wirt.store.record import read_record
    from wirt.vm.ownership import make_runtime

    paths = context.home.vm("one")
    make_runtime(paths, read_record(paths.record))
    socket = paths.socket("qmp")
    begin = time.perf_counter()
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    while not os.path.exists(socket):
        time.sleep(0.003)
    with QmpClient.connect(socket, timeout=30) as qmp:
        qmp.execute("query-status", reply=dict)
        wall = time.perf_counter() - begin
        qmp.execute("quit")
    process.wait()
    return Sample(wall, 0)
