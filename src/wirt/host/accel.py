"""Choosing KVM or TCG, and saying why."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from wirt.errors import MissingDependency
from wirt.host.kvm.verdict import Verdict, cached_verdict

_WITHOUT_KVM = Verdict(
    usable=False,
    reason="this QEMU has no KVM: it is for another CPU than the host's, or built without",
    hint="take the qemu-system of the host's own architecture",
)


class Accelerator(msgspec.Struct, frozen=True):
    """What runs the guest's code, and the reason for the choice."""

    name: Literal["kvm", "tcg"]
    reason: str


def choose_accelerator(
    wanted: str, *, cache_dir: str, built_in: Collection[str] = ()
) -> Accelerator:
    """Return KVM where it really runs a guest, else TCG; ``wanted`` may insist on one.

    ``built_in`` is what the QEMU has (``Capabilities.accelerators``); empty: not known.
    Raises MissingDependency when ``kvm`` is insisted on and does not work.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "as the machine asks")
    verdict = _WITHOUT_KVM if built_in and "kvm" not in built_in else cached_verdict(cache_dir)
    if verdict.usable:
        return Accelerator("kvm", verdict.reason)
    if wanted == "kvm":
        raise MissingDependency(
            f"the machine insists on KVM, but {verdict.reason}",
            hint=f"{verdict.hint}; or run it in software: accelerator=tcg",
        )
    return Accelerator("tcg", verdict.reason)
