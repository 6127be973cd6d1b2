"""Choosing KVM or TCG, and saying why."""

from __future__ import annotations

from typing import Literal

import msgspec

from wirt.errors import MissingDependency
from wirt.host.kvm.verdict import cached_verdict


class Accelerator(msgspec.Struct, frozen=True):
    """What runs the guest's code, and the reason for the choice."""

    name: Literal["kvm", "tcg"]
    reason: str


def choose_accelerator(wanted: str, *, cache_dir: str) -> Accelerator:
    """Return KVM where it really runs a guest, else TCG; ``wanted`` may insist on one.

    Raises MissingDependency when ``kvm`` is insisted on and does not work.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "as the machine asks")
    verdict = cached_verdict(cache_dir)
    if verdict.usable:
        return Accelerator("kvm", verdict.reason)
    if wanted == "kvm":
        raise MissingDependency(
            f"the machine insists on KVM, but {verdict.reason}",
            hint=f"{verdict.hint}; or run it in software: accelerator=tcg",
        )
    return Accelerator("tcg", verdict.reason)
