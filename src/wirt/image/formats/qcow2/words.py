"""Arrays of big-endian words, as every qcow2 table stores its entries."""

from __future__ import annotations

import sys
from array import array

from wirt.errors import CorruptImage
from wirt.image.base import Storage

_LARGEST_CLUSTER = 2 << 20
_PIECE = 2 << 20
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
    """Read metadata. A file that ends inside the table's last cluster reads as zeros there.

    So what a table may cost is bounded by the file that holds it, not by its own claim.
    """
    data = storage.pread(offset, length)
    missing = length - len(data)
    if not missing:
        return data
    if not data or missing >= _LARGEST_CLUSTER:
        raise CorruptImage(f"the {what} lies beyond the end of the file", offset=offset)
    return data + bytes(missing)


def read_words(storage: Storage, offset: int, length: int, what: str) -> array[int]:
    """Read a table of 64-bit words in pieces, so that it is in memory only once."""
    table = array("Q")
    for start in range(0, length, _PIECE):
        part = min(_PIECE, length - start)
        table.frombytes(read_table(storage, offset + start, part, what))
    if _SWAP:
        table.byteswap()
    return table
