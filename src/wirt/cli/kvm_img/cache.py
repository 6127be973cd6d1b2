"""Cache modes: checked as qemu-img does. What wirt writes is durable under all of them."""

from __future__ import annotations

from wirt.cli.kvm_img.failure import Failure

_MODES = frozenset({"none", "off", "writeback", "writethrough", "directsync", "unsafe"})


def check_cache(mode: str | None, *, source: bool = False) -> None:
    """Raise Failure if ``mode`` is no cache mode."""
    if mode is not None and mode not in _MODES:
        raise Failure(f"Invalid {'source ' if source else ''}cache option: {mode}")
