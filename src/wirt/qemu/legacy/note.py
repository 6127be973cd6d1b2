"""What became of one option of a line."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["same", "translated", "dropped", "refused"]


class Note(msgspec.Struct, frozen=True):
    """One option as it was written, and what it is today."""

    option: str
    value: str
    status: Status
    removed_in: str
    today: str
    why: str
    meaning: str = ""
    since: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What the translation of an option says beyond its line in the table."""

    status: Status = "translated"
    today: str = ""
    why: str = ""


class Refused(Exception):
    """An option that cannot be had; ``today`` is what to write instead."""

    def __init__(self, why: str, today: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.today = today
