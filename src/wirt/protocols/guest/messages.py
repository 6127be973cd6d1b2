"""What the guest helper tells and is told besides commands: who the guest is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import msgspec

from wirt.errors import ProtocolError

MAX_TEXT = 4096


class GuestInfo(msgspec.Struct, frozen=True):
    """``uptime`` in seconds; ``boot_id`` is shared by forks, and new after a reboot."""

    version: int
    boot_id: str
    hostname: str
    kernel: str
    machine: str
    uptime: float
    os: str


class Identity(msgspec.Struct, frozen=True):
    """What to make of a forked guest. What is None stays as it is.

    ``seed`` should be 32 fresh random bytes; ``macs`` are pairs of an address that a network
    card has and the one it gets, after which the guest asks for an address anew. ``now`` is
    in seconds since 1970, and the host's clock at the moment of sending if ``set_clock`` is
    true and it is None.
    """

    seed: bytes | None = None
    hostname: str | None = None
    machine_id: str | None = None
    macs: tuple[tuple[str, str], ...] = ()
    set_clock: bool = True
    now: float | None = None

    def fields(self) -> Iterator[bytes]:
        if self.set_clock:
            nanoseconds = time.time_ns() if self.now is None else int(self.now * 1e9)
            seconds, rest = divmod(nanoseconds, 10**9)
            yield b"time=%d.%09d" % (seconds, rest)
        if self.seed is not None:
            yield b"seed=" + self.seed
        if self.hostname is not None:
            yield b"hostname=" + self.hostname.encode()
        if self.machine_id is not None:
            yield b"machine_id=" + self.machine_id.encode()
        if self.macs:
            yield b"macs=" + ",".join(f"{old} {new}" for old, new in self.macs).encode()


class IdentityAnswer(msgspec.Struct, frozen=True):
    """What the guest is now. ``uuid`` is fresh from its kernel: equal in two forks means that

    they share random numbers. ``failed`` gives the reason of each step that did not work:
    time, seed, hostname, machine_id, macs.
    """

    uuid: str
    boot_id: str
    failed: Mapping[str, str] = msgspec.field(default_factory=dict)


def parse_info(strings: list[bytes]) -> GuestInfo:
    """Raises ProtocolError."""
    values = dict(_pairs(strings))
    try:
        return GuestInfo(
            version=int(values["version"]),
            boot_id=values["boot_id"],
            hostname=values["hostname"],
            kernel=values["kernel"],
            machine=values["machine"],
            uptime=float(values["uptime"]),
            os=values["os"],
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"the guest's info lacks something: {error}") from None


def parse_identity(strings: list[bytes]) -> IdentityAnswer:
    """Raises ProtocolError."""
    failed = {}
    values = {}
    for name, value in _pairs(strings):
        if name == "failed":
            step, _, why = value.partition(": ")
            failed[step] = why
        else:
            values[name] = value
    try:
        return IdentityAnswer(values["uuid"], values["boot_id"], failed)
    except KeyError as error:
        raise ProtocolError(f"the guest's identity lacks {error}") from None


def parse_text(text: bytes) -> str:
    """Return the guest's words fit for a terminal: one line, no control characters."""
    shown = text[:MAX_TEXT].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


def _pairs(strings: list[bytes]) -> Iterator[tuple[str, str]]:
    for string in strings:
        name, _, value = parse_text(string).partition("=")
        yield name, value
