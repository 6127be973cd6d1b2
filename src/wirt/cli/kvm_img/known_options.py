"""The options that an image may be opened with, by its format."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EVERYWHERE = _words(
    """driver node-name read-only auto-read-only force-share cache discard detect-zeroes"""
)
_QCOW2 = _words(
    """file backing data-file encrypt lazy-refcounts overlap-check cache-size l2-cache-size
    l2-cache-entry-size refcount-cache-size cache-clean-interval pass-discard-request
    pass-discard-snapshot pass-discard-other"""
)
_OWN = {
    "qcow2": _QCOW2,
    "qcow": _words("file backing encrypt"),
    "raw": _words("file offset size"),
    "luks": _words("file key-secret"),
}
_OTHERS = _words("file backing")


def format_options(name: str) -> frozenset[str]:
    """Return what a format understands; those about speed are accepted and change nothing."""
    return _OWN.get(name, _OTHERS)
