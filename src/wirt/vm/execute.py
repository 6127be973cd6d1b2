"""Running commands in a guest: by wirt's helper (streamed), else by the guest agent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from wirt.errors import Busy, GuestError, ProtocolError, Timeout, UsageError
from wirt.protocols.guest.client import GuestSession
from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.vm import state
from wirt.vm.channels import AGENT, HELPERS, open_ports
from wirt.vm.context import Context
from wirt.vm.monitor import connect
from wirt.vm.session import HelperPort, guest_session

Sink = Callable[[bytes], None]

CONNECT_SECONDS = 60.0
_GREETING_SECONDS = 5.0


def _drop(_data: bytes) -> None:
    return


class Order(msgspec.Struct, frozen=True):
    """What to run, and where its streams go.

    ``stdin`` is a descriptor, bytes, or None for nothing. ``timeout`` in seconds ends the
    command; None lets it run. ``terminal`` is (rows, columns) of a pseudo terminal.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    stdin: int | bytes | None = None
    stdout: Sink = _drop
    stderr: Sink = _drop
    timeout: float | None = None
    terminal: tuple[int, int] | None = None
    on_terminal: Callable[[Callable[[int, int], None]], None] | None = None
    """Is given the function that tells the guest's terminal its new rows and columns."""


def execute(context: Context, name: str, order: Order, port: HelperPort | None = None) -> int:
    """Run a command in a guest; return its exit code (128 + number for a signal).

    ``port`` is one to the guest's helper that is open already. Raises WrongState, GuestError
    when no way into the guest is open, Timeout, ProtocolError.
    """
    if not order.argv:
        raise UsageError("no command given", hint=f"wirt exec {name} -- uname -a")
    if port is not None:
        return _by_helper(port.session, order)
    paths = find(context.home, name)
    way = way_in(paths)
    if way == "helper":
        with guest_session(paths, timeout=CONNECT_SECONDS) as session:
            return _by_helper(session, order)
    return _by_agent(context, paths, order)


def way_in(paths: VmPaths, *, patience: float = 3.0) -> str:
    """Return ``helper`` or ``agent``. Raises WrongState, GuestError.

    The helper closes its ports while nobody talks to it, so it is greeted to be found.
    """
    deadline = time.monotonic() + patience
    while True:
        found = state.require_running(paths)
        with connect(paths, found.record) as qmp:
            ports = open_ports(qmp)
        if ports.intersection(HELPERS) or (AGENT in ports and _helper_answers(paths)):
            return "helper"
        if AGENT in ports:
            return "agent"
        if time.monotonic() > deadline:
            raise GuestError(
                f"nothing in {paths.name} listens to wirt: neither its helper nor a guest agent",
                hint=f"still booting? wirt wait {paths.name}; else: wirt console {paths.name}",
            )
        time.sleep(0.1)


def _helper_answers(paths: VmPaths) -> bool:
    try:
        with guest_session(paths, timeout=_GREETING_SECONDS):
            return True
    except Busy:
        return True  # all its ports are in use: so it is there
    except (Timeout, ProtocolError):
        return False


def _by_helper(session: GuestSession, order: Order) -> int:
    if order.on_terminal:
        order.on_terminal(session.resize)
    return session.exec(
        list(order.argv),
        env=dict(order.env),
        cwd=order.cwd or None,
        user=order.user or None,
        stdin=order.stdin,
        stdout=order.stdout,
        stderr=order.stderr,
        timeout=order.timeout,
        pty_size=order.terminal,
    )


def _by_agent(context: Context, paths: VmPaths, order: Order) -> int:
    if order.terminal:
        raise GuestError(
            f"{paths.name} has the guest agent only, which has no terminals",
            hint=f"wirt console {paths.name}, or wirt ssh {paths.name}",
        )
    from wirt.protocols.qga.client import AgentClient

    context.say("by the guest agent: output comes when the command has ended")
    program, arguments = _shell(order)
    with AgentClient.connect(paths.socket(AGENT), timeout=CONNECT_SECONDS) as agent:
        status = agent.exec(
            program,
            arguments,
            env=order.env or None,
            stdin=_all_of(order.stdin),
            timeout=order.timeout if order.timeout is not None else 365 * 86400.0,
        )
    order.stdout(status.out_data)
    order.stderr(status.err_data)
    if status.signal is not None:
        return 128 + status.signal
    return status.exitcode if status.exitcode is not None else 255


def _shell(order: Order) -> tuple[str, list[str]]:
    """The agent knows neither directories nor users: a shell does."""
    import shlex

    line = "exec " + shlex.join(order.argv)
    if order.cwd:
        line = f"cd {shlex.quote(order.cwd)} && {line}"
    if order.user:
        return "su", ["-", order.user, "-c", line]
    return "/bin/sh", ["-c", line]


def _all_of(stdin: int | bytes | None) -> bytes:
    if stdin is None or isinstance(stdin, bytes):
        return stdin or b""
    with open(os.dup(stdin), "rb") as file:
        data = file.read((8 << 20) + 1)
    if len(data) > 8 << 20:
        raise UsageError("the guest agent takes at most 8 MiB of input", hint="wirt cp, or ssh")
    return data
