"""What is wrong with the places of blocks in a file.

A place behind the end of the file, or one where something else lies, is a corruption; what
nothing names is a leak.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wirt.image.base import CheckResult

NO_ENTRY = -1
_MOST_MESSAGES = 100


class Use(msgspec.Struct, frozen=True):
    """Something lies at ``offset`` of the file; ``index`` is the block's, for one of the disk."""

    offset: int
    length: int
    what: str
    index: int = NO_ENTRY

    @property
    def end(self) -> int:
        return self.offset + self.length


class Faults(msgspec.Struct):
    beyond: list[Use] = msgspec.field(default_factory=list)
    shared: list[Use] = msgspec.field(default_factory=list)
    """What lies where something before it already does."""
    leaks: int = 0
    """How many blocks would fit where nothing lies."""
    end: int = 0
    """Where everything in use ends."""
    blocks: int = 0
    fragmented: int = 0
    messages: list[str] = msgspec.field(default_factory=list)

    def say(self, message: str) -> None:
        if len(self.messages) < _MOST_MESSAGES:
            self.messages.append(message)

    def result(self, total: int, more: Iterable[str] = ()) -> CheckResult:
        """Return the findings; ``more`` are further corruptions."""
        others = list(more)
        return CheckResult(
            corruptions=len(self.beyond) + len(self.shared) + len(others),
            leaks=self.leaks,
            total_clusters=total,
            allocated_clusters=self.blocks,
            fragmented_clusters=self.fragmented,
            image_end_offset=self.end,
            messages=[*self.messages, *others][:_MOST_MESSAGES],
        )


def find_faults(
    uses: Iterable[Use], size: int, unit: int, *, align: int = 1, first_block: int = 0
) -> Faults:
    """Look at everything in a file of ``size`` bytes whose blocks are ``unit`` bytes long.

    What lies before ``first_block`` is metadata, whether it is named or not.
    """
    faults = Faults()
    inside, last = [], 0
    for use in uses:
        if use.index >= 0:
            faults.blocks += 1
            faults.fragmented += faults.blocks > 1 and use.offset != last
            last = use.end
        if use.offset >= size or (use.offset % align and use.index != NO_ENTRY):
            faults.beyond.append(use)
            faults.say(f"{use.what} lies outside the file, at {use.offset:#x}")
        else:
            inside.append(use)
    # Metadata first where both begin at one place: the block is the one that can move.
    inside.sort(key=lambda use: (use.offset, use.index))
    before: Use | None = None
    for use in inside:
        if before is not None and use.offset < before.end:
            _note_shared(faults, before, use)
        else:
            gap = use.offset - max(faults.end, first_block)
            faults.leaks += max(0, gap) // unit if before is not None else 0
        if use.end > faults.end:
            faults.end, before = use.end, use
    faults.leaks += max(0, size - max(faults.end, first_block)) // unit
    return faults


def _note_shared(faults: Faults, one: Use, other: Use) -> None:
    moves = other if other.index != NO_ENTRY else one
    faults.shared.append(moves)
    faults.say(f"{one.what} and {other.what} overlap at {other.offset:#x}")


def repaired(before: CheckResult, after: CheckResult) -> CheckResult:
    """Return what is left ``after`` a repair, with what was found and fixed."""
    after.messages = [*before.messages, *after.messages][:_MOST_MESSAGES]
    after.corruptions_fixed = max(0, before.corruptions - after.corruptions)
    after.leaks_fixed = max(0, before.leaks - after.leaks)
    return after
