"""Jobs of a running QEMU on its disks: what they stand on is written into the images it writes to.

A stream is finished in two steps, with a flush between them: QEMU drops the link to the image
below while entries of its own are still in its cache, and a kill just then would lose them. Until
it is finished, and if it is given up, nothing that the guest sees has changed.

QEMU serves one client at a time, so it is asked now and then and not held.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wirt.errors import CommandRefused, NoSpace, QemuError, Timeout, WirtError
from wirt.host.failpoint import failpoint
from wirt.image.progress import Progress
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import BlockNodeInfo, JobInfo

_PREFIX = "wirt-keep-"
_POLL_SECONDS = 0.1
_END_SECONDS = 60.0
_BEFORE_END = {"created", "running", "paused", "ready", "standby", "waiting"}

Connect = Callable[[], QmpClient]


def flush(qmp: QmpClient, node: str) -> None:
    """Return when what a node was given is on disk, metadata too. QMP has no command for it.

    Raises QemuError.
    """
    line = {"command-line": f'qemu-io {node} "flush"'}
    said = qmp.execute("human-monitor-command", line, reply=str).strip()
    if said:
        raise QemuError(f"QEMU could not write out what it holds of {node}: {said}")


def flush_all(qmp: QmpClient) -> None:
    """Do so for every node that is written to."""
    nodes = qmp.execute("query-named-block-nodes", {"flat": True}, reply=list[BlockNodeInfo])
    for node in nodes:
        if not node.ro:
            flush(qmp, node.node_name)


@contextmanager
def streamed(connect: Connect, node: str, base: str, progress: Progress) -> Iterator[None]:
    """Write into ``node`` all that lies above the image ``base`` ("": all there is) below it.

    On entering, all is copied; it is finished when the block ends, and given up if it fails.
    Raises QemuError, NoSpace.
    """
    job = _PREFIX + node
    arguments: dict[str, object] = {
        "job-id": job, "device": node, "auto-finalize": False, "auto-dismiss": False,
    }  # fmt: skip
    if base:
        arguments["base"] = base
    try:
        with connect() as qmp:
            qmp.execute("block-stream", arguments)
        failpoint("stream-began")
        _await(connect, job, _BEFORE_END, progress)
        yield
        with connect() as qmp:
            flush_all(qmp)
            failpoint("stream-flushed")
            qmp.execute("job-finalize", {"id": job})
        _await(connect, job, {*_BEFORE_END, "pending"}, progress)
        failpoint("stream-finished")
        with connect() as qmp:
            qmp.execute("job-dismiss", {"id": job})
            flush_all(qmp)
    except BaseException:
        with contextlib.suppress(WirtError), connect() as qmp:
            end_jobs(qmp)
        raise


def drop_below(qmp: QmpClient, node: str, stem: str) -> None:
    """Close the nodes of a drive on which ``node`` stands no more, and with them their files.

    One that somebody still needs stays.
    """
    mine = re.compile(rf"{re.escape(stem)}-(f\d+|f\d+-file|format|file)")
    nodes = qmp.execute("query-named-block-nodes", {"flat": True}, reply=list[BlockNodeInfo])
    names = [one.node_name for one in nodes if mine.fullmatch(one.node_name)]
    images = [name for name in names if not name.endswith("-file") and name != node]
    files = [name for name in names if name.endswith("-file") and name != file_of(node)]
    while images:
        left = [name for name in images if not _deleted(qmp, name)]
        if len(left) == len(images):
            break
        images = left
    for name in files:
        _deleted(qmp, name)


def file_of(node: str) -> str:
    """Return the node of the file of an image's node, as wirt names them."""
    return f"{node.removesuffix('-format')}-file"


def _deleted(qmp: QmpClient, node: str) -> bool:
    try:
        qmp.execute("blockdev-del", {"node-name": node})
    except CommandRefused:
        return False
    return True


def _await(connect: Connect, job: str, going_on: set[str], progress: Progress) -> None:
    """Return when the job is in none of these states. Raises QemuError if it failed."""
    while True:
        with connect() as qmp:
            jobs = qmp.execute("query-jobs", reply=list[JobInfo])
        found = next((one for one in jobs if one.id == job), None)
        if found is None:
            raise QemuError("QEMU has given up copying the disk")
        if found.error:
            raise _failure(found.error)
        progress(found.current_progress, found.total_progress)
        if found.status not in going_on:
            return
        time.sleep(_POLL_SECONDS)


def _failure(words: str) -> QemuError | NoSpace:
    if "No space left" in words:
        return NoSpace("no space left for the disk", hint="free space: wirt images, df -h")
    return QemuError(f"QEMU could not copy the disk: {words}")


def end_jobs(qmp: QmpClient) -> None:
    """Give up what a killed command left; the disks show what they did. Raises Timeout."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        left = [
            job for job in qmp.execute("query-jobs", reply=list[JobInfo])
            if job.id.startswith(_PREFIX)
        ]  # fmt: skip
        if not left:
            return
        for job in left:
            word = "job-dismiss" if job.status == "concluded" else "job-cancel"
            with contextlib.suppress(CommandRefused):  # it went on by itself meanwhile
                qmp.execute(word, {"id": job.id})
        time.sleep(_POLL_SECONDS / 10)
    raise Timeout("QEMU does not give up copying a disk", hint="see it: wirt logs --qemu")
