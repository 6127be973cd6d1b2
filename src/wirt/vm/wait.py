"""Waiting for a guest to answer, or for a machine to be down."""

from __future__ import annotations

import contextlib
import time

from wirt.errors import GuestError, ProtocolError, Timeout, WirtError, WrongState
from wirt.protocols.qga.client import AgentClient
from wirt.spec.nic import User
from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.vm import logs, state
from wirt.vm.channels import AGENT, HELPERS, open_ports
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.execute import way_in
from wirt.vm.monitor import connect
from wirt.vm.session import guest_session

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 15.0


def wait_for_guest(context: Context, name: str, *, timeout: float) -> str:
    """Return when wirt's helper or the guest agent answers: ``helper`` or ``agent``.

    Raises WrongState if the machine ends meanwhile, Timeout after ``timeout`` seconds.
    """
    paths = find(context.home, name)
    deadline = time.monotonic() + timeout
    while True:
        answer = _answer(paths)
        if answer:
            if answer == "helper":
                _await_boot(paths, deadline)
            return answer
        if time.monotonic() > deadline:
            raise Timeout(
                f"{name} did not answer within {timeout:.0f} s: neither wirt's helper nor the "
                "guest agent is there",
                hint=f"see what it is doing: wirt logs {name}; wirt screenshot {name} x.png",
            )
        time.sleep(_POLL_SECONDS)


def _answer(paths: VmPaths) -> str:
    found = state.look(paths, ask=False)
    if not found.is_up:
        last = logs.tail(paths, qemu=True, limit=400).strip() or found.note
        raise WrongState(
            f"{paths.name} ended while it was waited for: {last}",
            hint=f"wirt logs {paths.name}",
        )
    if found.status != "running":
        return ""
    try:
        with connect(paths, found.record) as qmp:
            ports = open_ports(qmp)
        if not ports.intersection({AGENT, *HELPERS}):
            return ""
        way = way_in(paths)
        if way == "helper":
            with guest_session(paths, timeout=_ANSWER_SECONDS) as session:
                session.info()
        else:
            with AgentClient.connect(paths.socket(AGENT), timeout=_ANSWER_SECONDS) as agent:
                agent.ping()
    except WirtError:
        return ""  # not yet, or the machine is ending: the next look tells
    return way


_BOOTED = """\
if command -v systemctl >/dev/null; then systemctl is-system-running --wait; fi
[ "$1" = network ] || exit 0
for i in $(seq 100); do
    ip route 2>/dev/null | grep -q ^default && grep -q ^nameserver /etc/resolv.conf && exit 0
    sleep 0.2
done
"""


def _await_boot(paths: VmPaths, deadline: float) -> None:
    """The helper is there early; a user wants services and network of the guest as well.

    What the guest then says of itself (``running``, ``degraded``) is its own affair.
    """
    with (
        contextlib.suppress(ProtocolError, GuestError, Timeout),
        guest_session(paths, timeout=_ANSWER_SECONDS) as session,
    ):
        left = max(1.0, deadline - time.monotonic())
        session.exec(["sh", "-c", _BOOTED, "sh", _expects(paths)], timeout=left)


def _expects(paths: VmPaths) -> str:
    """Return ``network`` if a card of the machine gives it the way out."""
    backends = [nic.backend for nic in load_spec(paths).nics]
    out = any(isinstance(backend, User) and not backend.restrict for backend in backends)
    return "network" if out else "none"


def wait_for_stop(context: Context, name: str, *, timeout: float) -> None:
    """Return when the machine is down. Raises Timeout."""
    paths = find(context.home, name)
    found = state.look(paths, ask=False)
    process = state.process_of(found.record)
    if not found.is_up:
        return
    if process is None or not process.wait(timeout):
        raise Timeout(f"{name} is still running after {timeout:.0f} s", hint=f"wirt stop {name}")
