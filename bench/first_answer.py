"""From a QEMU process to its answer on QMP: wirt's launch against the same line by hand.

By hand: the line that ``wirt show --argv`` prints is started, and a client polls for the socket
and asks ``query-status``. The whole of ``start()`` (checks, durable records, console keeper) is
shown beside it, without a target.
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
from wirt.store.record import read_record
from wirt.vm.context import Context
from wirt.vm.create import Wish, create
from wirt.vm.inspect import argv
from wirt.vm.launch import launch
from wirt.vm.ownership import make_runtime
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
                what,
                lambda ours=ours: ours(context, line),
                "the same line typed by hand",
                lambda: _by_hand(context, line),
                rounds=ROUNDS,
                target=target,
                with_cpu=False,
            )
            for what, ours, target in (
                ("QEMU by wirt to its QMP answer", _launched, "wall <= 1.3"),
                ("start(), all of it", _started, ""),
            )
        ]
    finally:
        stop(context, "one", force=True)
        shutil.rmtree(root)


def _launched(context: Context, line: list[str]) -> Sample:
    paths = context.home.vm("one")
    make_runtime(paths, read_record(paths.record))
    begin = time.perf_counter()
    launched = launch(line, paths.socket("qmp"), [], timeout=60)
    wall = time.perf_counter() - begin
    launched.kill()
    launched.close()
    return Sample(wall, 0)


def _started(context: Context, _line: list[str]) -> Sample:
    begin = time.perf_counter()
    start(context, "one", paused=True)
    wall = time.perf_counter() - begin
    stop(context, "one", force=True)
    return Sample(wall, 0)


def _by_hand(context: Context, line: list[str]) -> Sample:
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
