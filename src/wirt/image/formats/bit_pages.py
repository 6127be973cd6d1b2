"""A bitmap in a file, lowest bit first in each byte, of which only the used pages are kept."""

from __future__ import annotations

from wirt.image.base import Storage
from wirt.image.formats.mapped import read_exactly, run_of_bits

_PAGE = 4096
_BITS = 8 * _PAGE
_CACHED = 64
_MOST_UNPUBLISHED = 4096


class BitPages:
    """``count`` bits at ``offset``; what is marked reaches the file by ``publish``."""

    def __init__(self, storage: Storage, offset: int, count: int) -> None:
        self._storage = storage
        self._offset = offset
        self._length = -(-count // 8)
        self.count = count
        # Apart, so that a reader who empties the cache never takes a marked page along.
        self._marked: dict[int, int] = {}
        self._pages: dict[int, int] = {}
        self._texts: dict[int, str] = {}

    @property
    def full(self) -> bool:
        """True when so much is unpublished that it is time to publish."""
        return len(self._marked) >= _MOST_UNPUBLISHED

    def _page_length(self, number: int) -> int:
        return min(_PAGE, self._length - number * _PAGE)

    def _page(self, number: int) -> int:
        page = self._marked.get(number)
        if page is None:
            page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= _CACHED:
                self._pages.clear()
            at = self._offset + number * _PAGE
            raw = read_exactly(self._storage, at, self._page_length(number), "the bitmap")
            page = self._pages[number] = int.from_bytes(raw, "little")
        return page

    def _text(self, number: int) -> str:
        text = self._texts.get(number)
        if text is None:
            if len(self._texts) >= _CACHED:
                self._texts.clear()
            digits = format(self._page(number), f"0{8 * self._page_length(number)}b")
            text = self._texts[number] = digits[::-1]
        return text

    def run(self, first: int) -> tuple[bool, int]:
        """Return the bit ``first`` and how many from it on are like it, within its page."""
        number, inside = divmod(first, _BITS)
        text = self._text(number)
        return text[inside] == "1", run_of_bits(text, inside) - inside

    def mark(self, first: int, count: int) -> None:
        """Set ``count`` bits from ``first`` on."""
        while count:
            number, inside = divmod(first, _BITS)
            step = min(count, _BITS - inside)
            old = self._page(number)
            new = old | ((1 << step) - 1) << inside
            if new != old:
                self._marked[number] = new
                self._texts.pop(number, None)
            first += step
            count -= step

    def publish(self) -> bool:
        """Write the pages that have changed; False if there are none."""
        changed = bool(self._marked)
        for number, page in sorted(self._marked.items()):
            raw = page.to_bytes(self._page_length(number), "little")
            self._storage.pwrite(self._offset + number * _PAGE, raw)
            self._pages[number] = page
        self._marked.clear()
        return changed

    def clear(self) -> None:
        """Write zeros over the whole bitmap."""
        self._marked.clear()
        self._pages.clear()
        self._texts.clear()
        for at in range(0, self._length, 1 << 20):
            step = min(1 << 20, self._length - at)
            self._storage.pwrite(self._offset + at, bytes(step))
