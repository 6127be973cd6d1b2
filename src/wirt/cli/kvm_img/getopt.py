"""Command lines as getopt_long reads them: options anywhere, abbreviated long ones, clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wirt.cli.kvm_img.failure import Misuse


@dataclass(slots=True)
class Words:
    """What was given: (option, value) in order, and the words that are no options."""

    options: list[tuple[str, str]] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        return any(name in names for name, _ in self.options)

    def last(self, name: str) -> str | None:
        return next((value for given, value in reversed(self.options) if given == name), None)

    def every(self, name: str) -> list[str]:
        return [value for given, value in self.options if given == name]


@dataclass(frozen=True, slots=True)
class Grammar:
    """``short`` as for getopt (``f:`` takes a value); ``long`` maps a name to its option.

    An option of ``long`` that ends with ``:`` takes a value.
    """

    short: str
    long: Mapping[str, str]

    def takes_value(self, letter: str) -> bool | None:
        place = self.short.find(letter)
        if place < 0 or letter == ":":
            return None
        return self.short[place + 1 : place + 2] == ":"

    def find_long(self, given: str) -> tuple[str, bool] | None:
        """Return (option, takes a value) for a long name or an unambiguous beginning of one."""
        names = [given] if given in self.long else [n for n in self.long if n.startswith(given)]
        if len(names) != 1:
            return None
        option = self.long[names[0]]
        return option.removesuffix(":"), option.endswith(":")


def parse_words(words: Sequence[str], grammar: Grammar, *, leading: bool = False) -> Words:
    """Sort ``words``; with ``leading`` options end at the first other word. Raises Misuse."""
    parsed = Words()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parsed.operands += rest
            break
        if word.startswith("--"):
            _long(word, rest, grammar, parsed)
        elif word.startswith("-") and word != "-":
            _cluster(word, rest, grammar, parsed)
        elif leading:
            parsed.operands += [word, *rest]
            break
        else:
            parsed.operands.append(word)
    return parsed


def _long(word: str, rest: list[str], grammar: Grammar, parsed: Words) -> None:
    name, equals, value = word[2:].partition("=")
    found = grammar.find_long(name)
    if found is None or (equals and not found[1]):
        raise Misuse(f"unrecognized option '{word}'")
    option, takes_value = found
    if takes_value and not equals:
        if not rest:
            raise Misuse(f"missing argument for option '{word}'")
        value = rest.pop(0)
    parsed.options.append((option, value))


def _cluster(word: str, rest: list[str], grammar: Grammar, parsed: Words) -> None:
    for place, letter in enumerate(word[1:], 1):
        takes_value = grammar.takes_value(letter)
        if takes_value is None:
            raise Misuse(f"unrecognized option '{word}'")
        if not takes_value:
            parsed.options.append((letter, ""))
            continue
        value = word[place + 1 :]
        if not value:
            if not rest:
                raise Misuse(f"missing argument for option '{word}'")
            value = rest.pop(0)
        parsed.options.append((letter, value))
        return
