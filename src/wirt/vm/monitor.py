"""QMP connections to the QEMU of a machine, and to no other."""

from __future__ import annotations

from wirt.errors import ProtocolError, WrongState
from wirt.protocols.qmp.client import QmpClient
from wirt.protocols.qmp.messages import StatusInfo, UuidInfo
from wirt.store.layout import VmPaths
from wirt.store.record import Record, Run


def query_status(paths: VmPaths, record: Record, *, timeout: float = 10.0) -> str:
    """Return QEMU's run state: ``running``, ``paused``, ``prelaunch`` …"""
    with connect(paths, record, timeout=timeout) as qmp:
        return qmp.execute("query-status", reply=StatusInfo, timeout=timeout).status


def connect(paths: VmPaths, record: Record, *, timeout: float = 10.0) -> QmpClient:
    """Return a QMP client of the machine's own QEMU.

    The peer must be the recorded process with the machine's UUID: a hostile QEMU could have
    put a link to another machine's socket in its place. Raises WrongState, ProtocolError,
    Timeout.
    """
    if record.run is None:
        raise WrongState(f"{paths.name} is not running", hint=f"wirt start {paths.name}")
    client = QmpClient.connect(paths.socket("qmp"), timeout=timeout)
    try:
        _verify(client, paths, record.run, timeout)
    except BaseException:
        client.close()
        raise
    return client


def _verify(client: QmpClient, paths: VmPaths, run: Run, timeout: float) -> None:
    if client.peer_pid() != run.pid:
        raise ProtocolError(
            f"{paths.socket('qmp')} is served by process {client.peer_pid()}, not by the QEMU "
            f"that was started ({run.pid})",
            hint=f"wirt stop --force {paths.name}",
        )
    uuid = client.execute("query-uuid", reply=UuidInfo, timeout=timeout).uuid
    expected = run.argv[run.argv.index("-uuid") + 1] if "-uuid" in run.argv else uuid
    if uuid != expected:
        raise ProtocolError(f"QEMU {run.pid} has the UUID {uuid}, not {expected}")
