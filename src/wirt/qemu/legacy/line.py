"""From the words of a command line to options with their values and positions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

DISK = "(disk)"
"""The option that a word without a dash stands for: the first hard disk."""

PROGRAMS = ("kvm", "qemu", "qemu-kvm", "qemu-system-x86_64", "qemu-system-i386", "kqemu")
IMAGE_TOOLS = ("kvm-img", "qemu-img", "kvm-nbd", "qemu-nbd", "kvm-io", "qemu-io")


class Given(msgspec.Struct, frozen=True):
    """An option as it stands in a line; ``position`` counts words from 0."""

    option: str
    value: str
    position: int
    has_value: bool = False
    attached: bool = False
    """Written ``-boot=c``, which QEMU never took."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the line."""
        return (f"-{self.option}", self.value) if self.has_value else (f"-{self.option}",)


def program_of(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the program's name and the words behind it; lines may begin with an option."""
    if words and not words[0].startswith("-"):
        return os.path.basename(words[0]), words[1:]
    return "kvm", words


def read(words: Sequence[str], takes_value: Callable[[str], bool | None]) -> list[Given]:
    """Return the options. ``takes_value`` is None for an option that nobody knows."""
    given: list[Given] = []
    place = 0
    while place < len(words):
        word = words[place]
        if not word.startswith("-") or word == "-":
            given.append(Given(DISK, word, place, has_value=True))
            place += 1
            continue
        one, used = _option(words, place, takes_value)
        given.append(one)
        place += used
    return given


def _option(
    words: Sequence[str], place: int, takes_value: Callable[[str], bool | None]
) -> tuple[Given, int]:
    word = words[place]
    name = word.removeprefix("-").removeprefix("-")
    takes = takes_value(name)
    if takes is None and "=" in name:
        bare, _, value = name.partition("=")
        if takes_value(bare):
            return Given(bare, value, place, has_value=True, attached=True), 1
    if takes is None:
        follows = words[place + 1] if place + 1 < len(words) else "-"
        alone = follows.startswith("-")
        value = "" if alone else follows
        return Given(name, value, place, has_value=not alone), 1 if alone else 2
    if not takes:
        return Given(name, "", place), 1
    if place + 1 >= len(words):
        return Given(name, "", place, has_value=False), 1
    return Given(name, words[place + 1], place, has_value=True), 2
