"""What a handshake asks of whoever holds the socket.

A handshake is a generator: it yields a step, is sent what the step brought, and returns what
was agreed. So it does no I/O, and a test can play the peer with plain bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Send(NamedTuple):
    """Send these bytes; brings nothing."""

    data: bytes


class Receive(NamedTuple):
    """Receive exactly so many bytes; brings them."""

    length: int


class StartTls(NamedTuple):
    """Speak TLS from here on; brings nothing."""


Step = Send | Receive | StartTls
Handshake = Generator[Step, bytes, T]
