"""Where host-side network things are: the namespace wirt runs in, or a private one.

A private place is a user and a network namespace that some process of wirt's keeps alive:
whoever made it is root there, and nothing in it is visible or reachable from outside.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sys

import msgspec

from wirt.errors import Busy, HostError, MissingDependency, NotFound, WirtError
from wirt.host.process import Completed, find_program, run, spawn
from wirt.net import descriptors

_SECONDS = 20.0


class Place(msgspec.Struct, frozen=True):
    """``pid`` is a process inside; 0 means where wirt itself runs."""

    pid: int = 0

    @property
    def is_private(self) -> bool:
        return self.pid != 0

    def command(self, argv: list[str]) -> list[str]:
        """Return ``argv`` so that it runs there."""
        if not self.pid:
            return argv
        # Without --preserve-credentials nsenter wants to set groups, which nobody may there.
        words = ["nsenter", "--target", str(self.pid), "--user", "--net"]
        return [find_program(words[0]), *words[1:], "--preserve-credentials", "--", *argv]

    def run(self, *argv: str, check: bool = True, text: str = "") -> Completed:
        """Run a short command there. Raises HostError, MissingDependency, Timeout."""
        line = self.command([find_program(argv[0]), *argv[1:]])
        return run(line, input=text.encode(), timeout=_SECONDS, check=check)

    def ip(self, *words: str, check: bool = True) -> Completed:
        """Run ``ip``."""
        return self.run("ip", *words, check=check)

    def has(self, interface: str) -> bool:
        """True if an interface of that name is there."""
        return self.ip("link", "show", "dev", interface, check=False).returncode == 0


HERE = Place()


def stable_mac(*words: str) -> str:
    """Return an address for the host's end of a wire that is the same each time it is made.

    A bridge has the lowest address of its ports: if that changed, its peers would look for it
    at the old one. The first byte is the highest that a card can have, so a bridge with other
    ports keeps their address.
    """
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
    return ":".join(["fe", *(digest[at : at + 2] for at in range(0, 10, 2))])


def tap(place: Place, name: str, mac: str, *, offload: bool = True) -> tuple[int, str]:
    """Make a TAP and bring it up. Returns the descriptor that holds it, and its name.

    Raises HostError, MissingDependency, Busy.
    """
    wanted = {"tap": name, "offload": offload}
    answer, fds = _made(place.command([sys.executable]) if place.pid else [], wanted)
    if not fds:
        raise _tap_error(answer, name, place)
    made = str(answer["name"])
    try:
        place.ip("link", "set", "dev", made, "address", mac, "up")
    except WirtError:
        os.close(fds[0])
        raise
    return fds[0], made


def require_taps() -> None:
    """Refuse what needs a TAP that another program makes. Raises MissingDependency."""
    if not os.path.exists(descriptors.TUN):
        raise _tap_error({"errno": errno.ENOENT}, "", HERE)


def _tap_error(answer: dict[str, object], name: str, place: Place) -> WirtError:
    number = answer.get("errno")
    if number == errno.ENOENT:
        return MissingDependency(
            f"{descriptors.TUN} is missing: this host makes no taps",
            hint="modprobe tun, or use a network that needs none: user, a switch, a socket",
        )
    if number == errno.EBUSY:
        return Busy(
            f"the interface {name} is in use", hint="leave its name out, and wirt picks one"
        )
    if number in {errno.EACCES, errno.EPERM} and place.is_private:
        return HostError(
            f"you may not open {descriptors.TUN}, which private networks need too",
            hint=f"as root, once: chmod 666 {descriptors.TUN} (it gives no rights by itself)",
        )
    if number in {errno.EACCES, errno.EPERM}:
        return HostError(
            "a tap among the host's own interfaces needs root (CAP_NET_ADMIN)",
            hint="without root: wirt net create NAME --private, or the backends user and switch",
        )
    return HostError(f"no tap {name}: {os.strerror(int(str(number or errno.EIO)))}")


def vde_port(directory: str, own: str, *, port: int, text: str, uid: int = 0) -> tuple[int, int]:
    """Take a port of a VDE switch that runs as ``uid`` (0: as we do).

    Returns the descriptors of frames and of control. Raises NotFound, HostError.
    """
    wanted = {"switch": directory, "own": own, "port": port, "text": text, "uid": uid}
    answer, fds = _made([sys.executable] if uid else [], wanted)
    if len(fds) == 2:
        return fds[0], fds[1]
    if answer.get("errno") in {errno.ENOENT, errno.ECONNREFUSED}:
        raise NotFound(f"no switch answers at {directory}", hint="wirt switch ls")
    reason = os.strerror(int(str(answer.get("errno") or errno.EIO)))
    raise HostError(f"the switch at {directory} gives no port {port or ''}: {reason}")


def as_user(uid: int) -> list[str]:
    """Return the words that make what follows an ordinary process of ``uid``."""
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return [
        find_program("setpriv"), "--no-new-privs", *ids, "--bounding-set=-all", "--inh-caps=-all"
    ]  # fmt: skip


def _made(prefix: list[str], wanted: dict[str, object]) -> tuple[dict[str, object], list[int]]:
    """Make descriptors here, or by the interpreter that ``prefix`` ends with."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if not prefix:
            return _made_here(wanted)
        script = [*prefix, "-I", "-S", descriptors.__file__, str(theirs.fileno())]
        process = spawn([*script, json.dumps(wanted)], pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(_SECONDS)
        try:
            data, fds, _, _ = socket.recv_fds(ours, 4096, 2)
        except OSError:
            data, fds = b"", []
        finally:
            process.kill()
            process.wait()
    for fd in fds:
        os.set_inheritable(fd, False)
    return (json.loads(data) if data else {}), fds


def _made_here(wanted: dict[str, object]) -> tuple[dict[str, object], list[int]]:
    try:
        if "tap" in wanted:
            fd, name = descriptors.open_tap(str(wanted["tap"]), offload=bool(wanted["offload"]))
            return {"name": name}, [fd]
        fds = descriptors.open_port(
            str(wanted["switch"]), str(wanted["own"]), int(str(wanted["port"])), str(wanted["text"])
        )
    except OSError as error:
        return {"errno": error.errno}, []
    return {}, [*fds]
