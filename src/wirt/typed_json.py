"""JSON into structs, from any thread.

msgspec builds what it needs to know of a type when it first decodes into it, and two threads
that do so for one type at once crash the interpreter. Here that is done under a lock, once.

It compiles every annotation that is text, in every process anew: ten milliseconds for the manifest
of a state. So the modules of machines, records and states do without
``from __future__ import annotations``.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_building = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(data: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """Return ``data`` as a ``kind``. Raises msgspec.MsgspecError."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _building:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    decoded: T = decoder.decode(data)
    return decoded
