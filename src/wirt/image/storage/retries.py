"""Asking a server again after a fault that may pass."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from wirt.errors import ImageAccessDenied, ImageIoError

ATTEMPTS = 4
PAUSE = 0.5

_T = TypeVar("_T")


class Passing(Exception):
    """A fault that another try may not meet: the connection broke, the server is busy."""


def untrusted(error: ssl.SSLCertVerificationError, name: str) -> ImageAccessDenied:
    """Say what a certificate lacks: asking again does not mend that."""
    return ImageAccessDenied(
        f"the server's certificate is not trusted: {error.verify_message}",
        path=name,
        hint="apt install ca-certificates, or set SSL_CERT_FILE to the CA's file",
    )


def with_retries(ask: Callable[[], _T], *, name: str, pause: float) -> _T:
    """Return what ``ask`` does, tried ``ATTEMPTS`` times while it raises ``Passing``.

    ``pause`` seconds lie before the second try, more before each further one. Raises
    ImageIoError with the last fault.
    """
    problem = ""
    for attempt in range(ATTEMPTS):
        time.sleep(pause * attempt)
        try:
            return ask()
        except Passing as error:
            problem = str(error)
    raise ImageIoError(
        f"the server does not answer: {problem}",
        path=name,
        hint="check the address, the server and the network",
    )
