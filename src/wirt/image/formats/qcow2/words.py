"""Arrays of big-endian words, as every qcow2 table stores its entries."""

from __future__ import annotations

import sys
from array import array

from wirt.errors import CorruptImage
from wirt.image.base import Storage

_SWAP = sys.byteorder == "little"


def words_from(data: bytes, typecode: str = "Q") -> array[int]:
    """Return the big-endian words of ``data`` in native order."""
    table = array(typecode)
    table.frombytes(data)
    if _SWAP and table.itemsize > 1:
        table.byteswap()
    return table


def words_to(table: array[int]) -> bytes:
    """Return ``table`` big-endian; the argument is left as it is."""
    if not _SWAP or table.itemsize == 1:
        return table.tobytes()
    swapped = array(table.typecode, table)
    swapped.byteswap()
    return swapped.tobytes()


def read_table(storage: Storage, offset: int, length: int, what: str) -> bytes:
    """Read metadata. A file that ends inside the table reads as zeros, as in QEMU."""
    data = storage.pread(offset, length)
    if not data:
        raise CorruptImage(f"the {what} lies beyond the end of the file", offset=offset)
    return data if len(data) == length else data + bytes(length - len(data))
