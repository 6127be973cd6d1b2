"""LZO1X, as the Linux kernel reads it: codes for literals and matches, told by their first byte.

::

    0000llll          literals: l + 3, l = 0 goes on in further bytes (only where none came before)
    0000ddss dddddddd after literals that came with a match: 2 bytes from d + 1 back;
                      after a literal run: 3 bytes from d + 2049 back
    0001dlll .. dddddddddddddd ss   l + 2 bytes from d + 16384 back; d = 0: the end
    001lllll .. dddddddddddddd ss   l + 2 bytes from d + 1 back
    lllddDss DDDDDDDD               l + 1 bytes from d + 1 back

``s`` literals follow a match. A first byte over 17 stands for that many literals less 17.
"""

from __future__ import annotations

from wirt.errors import CorruptImage


def unpack_lzo(packed: bytes, most: int) -> bytes:
    """Return what ``packed`` holds, at most ``most`` bytes. Raises CorruptImage."""
    try:
        return _Stream(packed, most).unpacked()
    except IndexError as error:
        raise CorruptImage("an LZO block is cut off") from error


class _Stream:
    def __init__(self, packed: bytes, most: int) -> None:
        self._packed = packed
        self._most = most
        self._at = 0
        self._out = bytearray()

    def unpacked(self) -> bytes:
        literals = self._first()
        while True:
            code = self._byte()
            if code >= 16:
                trailing = self._match(code)
            elif literals == 0:
                self._literal((code or self._long(15)) + 3)
                literals = 4
                continue
            else:
                distance = (code >> 2) + (self._byte() << 2) + 1
                long = literals == 4
                self._copy(distance + 2048 if long else distance, 3 if long else 2)
                trailing = code & 3
            if trailing is None:
                return bytes(self._out)
            self._literal(trailing)
            literals = trailing

    def _first(self) -> int:
        """Return how many literals came before the first code: 0 to 3, or 4 for a run."""
        code = self._packed[0]
        if code <= 17:
            return 0
        self._at = 1
        self._literal(code - 17)
        return min(code - 17, 4)

    def _match(self, code: int) -> int | None:
        if code >= 64:
            distance = (code >> 2 & 7) + (self._byte() << 3) + 1
            self._copy(distance, (code >> 5) + 1)
            return code & 3
        if code >= 32:
            length = (code & 31 or self._long(31)) + 2
            further = self._byte() | self._byte() << 8
            self._copy((further >> 2) + 1, length)
            return further & 3
        length = (code & 7 or self._long(7)) + 2
        further = self._byte() | self._byte() << 8
        distance = ((code & 8) << 11) + (further >> 2)
        if not distance:
            return None
        self._copy(distance + 16384, length)
        return further & 3

    def _byte(self) -> int:
        value = self._packed[self._at]
        self._at += 1
        return value

    def _long(self, base: int) -> int:
        """Return a length of several bytes: zeros count 255 each, the last counts itself."""
        length = base
        while not (value := self._byte()):
            length += 255
            if length > self._most:
                raise CorruptImage("an LZO block holds more than it should")
        return length + value

    def _literal(self, count: int) -> None:
        piece = self._packed[self._at : self._at + count]
        if len(piece) < count:
            raise CorruptImage("an LZO block is cut off")
        self._at += count
        self._add(piece)

    def _copy(self, distance: int, count: int) -> None:
        start = len(self._out) - distance
        if start < 0:
            raise CorruptImage("an LZO block refers to what is before it")
        piece = bytes(self._out[start : start + count])
        self._add((piece * (count // len(piece) + 1))[:count])

    def _add(self, piece: bytes) -> None:
        if len(self._out) + len(piece) > self._most:
            raise CorruptImage("an LZO block holds more than it should")
        self._out += piece
