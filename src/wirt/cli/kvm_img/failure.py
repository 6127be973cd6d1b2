"""Why a command ends early, in qemu-img's words."""

from __future__ import annotations

import os
import sys

from wirt.errors import ImageError, ImageInUse, WirtError


class Failure(Exception):
    """Lines for standard error, a hint that is printed below them as it is, and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def prefixed(self, prefix: str) -> Failure:
        return Failure(prefix + self.message, hint=self.hint, code=self.code)

    def exiting(self, code: int) -> Failure:
        return Failure(self.message, hint=self.hint, code=code)


class Misuse(Failure):
    """The command line itself is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint=f"Try '{program()} --help' for more information\n")


class Done(Exception):
    """Nothing is left to do (help was printed)."""


def program() -> str:
    """Return the name that messages begin with: the one that the user typed."""
    return os.path.basename(sys.argv[0]) or "kvm-img"


def report(message: str, *, hint: str = "") -> None:
    for line in message.split("\n"):
        print(f"{program()}: {line}", file=sys.stderr)
    if hint:
        sys.stderr.write(hint)


def warn(message: str) -> None:
    report(f"warning: {message}")


def failure_of(error: WirtError) -> Failure:
    """Return the failure that tells what the engine met."""
    if isinstance(error, ImageInUse):
        return Failure(error.message, hint=f"Is another process using the image [{error.path}]?\n")
    if isinstance(error, ImageError):
        return Failure(error.message)
    return Failure(error.message)
