"""One line of the table of options, and the plain things that can become of one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused

Act = Callable[[Draft, Given], Outcome | None]


def keep(draft: Draft, given: Given) -> Outcome:
    """QEMU still knows it: the words go to it as they are, with the machine."""
    draft.args += given.words
    return Outcome("same")


def process(draft: Draft, given: Given) -> Outcome:
    """As ``keep``, but it says how to run QEMU, not what the machine is."""
    draft.process += given.words
    return Outcome("same")


def drop(_draft: Draft, _given: Given) -> Outcome:
    """It is gone, and the guest does not miss it."""
    return Outcome("dropped")


def refuse(_draft: Draft, _given: Given) -> Outcome:
    """It cannot be had any more; the table says why."""
    raise Refused("")


def forget(_draft: Draft, _given: Given) -> Outcome:
    """It is how QEMU is started by wirt anyway."""
    return Outcome("same")


class Option(msgspec.Struct, frozen=True):
    """``since`` and ``removed_in`` are versions of QEMU (or kvm-NN); empty: still there."""

    name: str
    takes_value: bool
    since: str
    removed_in: str
    meaning: str
    act: Act
    today: str = ""
    why: str = ""


def flag(
    name: str, since: str, removed_in: str, meaning: str, act: Act, today: str = "", why: str = ""
) -> Option:
    """Return an option that stands alone."""
    return Option(name, False, since, removed_in, meaning, act, today, why)


def valued(
    name: str, since: str, removed_in: str, meaning: str, act: Act, today: str = "", why: str = ""
) -> Option:
    """Return an option that is followed by a value."""
    return Option(name, True, since, removed_in, meaning, act, today, why)
