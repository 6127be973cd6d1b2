"""Cables: what joins two switches, and what it does to frames on the way."""

from __future__ import annotations

import re

import msgspec

from wirt.errors import (
    HostError,
    MissingDependency,
    NotFound,
    Timeout,
    UsageError,
    WirtError,
)
from wirt.host.process import find_program, mortal, run
from wirt.net.console import Console
from wirt.net.place import as_user
from wirt.spec.setting import NAME_PATTERN

_NAME = NAME_PATTERN.strip("^$")
_LOCAL = re.compile(rf"({_NAME})(?::(\d{{1,4}}))?")
_PATH = re.compile(r"vde://(/[\w./+@-]+)")
_SSH = re.compile(
    rf"ssh://(?:([A-Za-z0-9_][\w.-]{{0,63}})@)?([A-Za-z0-9][\w.-]{{0,252}}|\[[0-9A-Fa-f:]+\])"
    rf"(?::(\d{{1,5}}))?/({_NAME}|/[\w./+@-]+)"
)
_SSH_SECONDS = 30.0
_SSH_OPTIONS = (
    "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlPath=none",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "EscapeChar=none",
)  # fmt: skip
_TEST = "test -S"


class LocalEnd(msgspec.Struct, frozen=True):
    """A switch of wirt's, and its port (0: any)."""

    switch: str
    port: int = 0


class PathEnd(msgspec.Struct, frozen=True):
    """A switch that somebody else runs."""

    path: str


class SshEnd(msgspec.Struct, frozen=True):
    """A switch on another host: a name that wirt there knows, or the path of its sockets."""

    host: str
    switch: str
    user: str = ""
    port: int = 0


End = LocalEnd | PathEnd | SshEnd


def parse_end(text: str) -> End:
    """Return one end of a cable. Raises UsageError: nothing else reaches a command line."""
    if match := _LOCAL.fullmatch(text):
        return LocalEnd(match[1], int(match[2] or 0))
    if match := _PATH.fullmatch(text):
        return PathEnd(match[1])
    if match := _SSH.fullmatch(text):
        return SshEnd(match[2], match[4], match[1] or "", int(match[3] or 0))
    raise UsageError(
        f"{text[:60]!r} is no end of a cable",
        hint="SWITCH, SWITCH:PORT, ssh://[USER@]HOST[:PORT]/SWITCH, ssh://HOST//PATH, vde:///PATH",
    )


class Plug(msgspec.Struct, frozen=True):
    """A way into a switch of this host: its sockets, a port (0: any), and whose it is."""

    path: str
    port: int = 0
    uid: int = 0

    @property
    def url(self) -> str:
        return f"vde://{self.path}[{self.port}]" if self.port else f"vde://{self.path}"


def plug_program(plug: Plug, *, text: str) -> list[str]:
    """Return the line of a plug, frames on its pipes, that ends with who starts it."""
    return _as(plug.uid, ["vde_plug", "-D", text, plug.url])


def joining_program(first: Plug, second: Plug, *, text: str) -> list[str]:
    """Return the line that joins two switches of one user in one process."""
    return _as(first.uid, ["vde_plug", "-D", text, first.url, second.url])


def _as(uid: int, argv: list[str]) -> list[str]:
    """A program that ends with its parent, and may do nothing but what ``uid`` may."""
    line = mortal([find_program(argv[0]), *argv[1:]])
    return [*as_user(uid), *line] if uid else line


def filter_program(console: str, words: list[str], *, uid: int) -> list[str]:
    """Return the line of a filter between two plugs."""
    return _as(uid, ["wirefilter", "-M", console, "--mgmtmode", "0600", *words])


def ssh_line(end: SshEnd, options: tuple[str, ...]) -> list[str]:
    """Return ssh with what it needs to reach the other host, without a command."""
    line = [find_program("ssh"), *_SSH_OPTIONS]
    for option in options:
        line += ["-o", option]
    if end.port:
        line += ["-p", str(end.port)]
    host = end.host.strip("[]")
    return [*line, "--", f"{end.user}@{host}" if end.user else host]


def remote_program(end: SshEnd, options: tuple[str, ...]) -> list[str]:
    """Return the line of a plug on another host, frames on the pipes of ssh."""
    command = (
        f"exec vde_plug vde://{end.switch}"
        if end.switch.startswith("/")
        else f"exec wirt switch plug {end.switch}"
    )
    return mortal([*ssh_line(end, options), command])


def require_remote(end: SshEnd, options: tuple[str, ...]) -> None:
    """Ask the other host for the switch before a cable is laid.

    Raises HostError with what ssh said, NotFound, MissingDependency.
    """
    path = end.switch.startswith("/")
    ask = f"{_TEST} {end.switch}/ctl && command -v vde_plug" if path else (
        f"wirt switch plug --check {end.switch}"
    )  # fmt: skip
    try:
        done = run([*ssh_line(end, options), ask], timeout=_SSH_SECONDS, check=False)
    except Timeout as error:
        raise HostError(f"{end.host} does not answer", hint="is sshd reachable there?") from error
    said = (done.stderr or done.stdout).decode(errors="replace").strip()
    last = said.splitlines()[-1].strip() if said else ""
    if done.returncode == 255:
        raise _ssh_error(end, said, last)
    if done.returncode == 127:
        raise MissingDependency(
            f"{end.host} has no {'vde_plug' if path else 'wirt'}: {last}",
            hint="install it there, or name the switch by its path: ssh://HOST//PATH",
        )
    if done.returncode:
        first = said.splitlines()[0].removeprefix("wirt: ") if said else "no switch is there"
        raise NotFound(f"{end.host}: {end.switch}: {first}", hint="see it there: wirt switch ls")


def _ssh_error(end: SshEnd, said: str, last: str) -> WirtError:
    name = f"ssh {end.host}" if not end.port else f"ssh -p {end.port} {end.host}"
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION" in said:
        changed = "has changed" if "CHANGED" in said else "is not known"
        return HostError(
            f"the host key of {end.host} {changed}",
            hint=f"check it and accept it once by hand: {name}",
        )
    if "Permission denied" in said:
        return HostError(
            f"{end.host} refuses our key: {last}",
            hint=f"make this work without a password: {name} true",
        )
    return HostError(f"{end.host} cannot be reached by ssh: {last}", hint=f"{name} true")


class Effect(msgspec.Struct, frozen=True):
    """What a filter does in each direction: milliseconds, percent, bytes a second."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    bandwidth: int = 0

    @property
    def spread(self) -> str:
        return f"{self.delay:g}+{self.jitter:g}" if self.jitter else f"{self.delay:g}"


def filter_words(effect: Effect) -> list[str]:
    """Return the options of a filter."""
    words = []
    if effect.delay:
        words += ["-d", effect.spread]
    if effect.loss:
        words += ["-l", f"{effect.loss:g}"]
    if effect.bandwidth:
        words += ["-b", str(effect.bandwidth)]
    return words


def change_filter(console: str, effect: Effect) -> None:
    """Change a filter while frames pass. Raises ProtocolError, Timeout."""
    with Console(console) as filter_:
        filter_.ask(f"delay {effect.spread}")
        filter_.ask(f"loss {effect.loss:g}")
        filter_.ask(f"bandwidth {effect.bandwidth}")
