"""One thing that was looked at on the host, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "info", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """``fail``: no machine can run; ``warn``: something wirt can do does not work here."""

    id: str
    """Stable, for programs: ``kvm``, ``qemu.version`` …"""
    title: str
    status: Status
    detail: str
    cure: str = ""
    """The exact next step; empty where there is none or none is needed."""
