"""The runs that are not zeros, against looking at every byte."""

import random

import pytest

from wirt.image.zero_runs import data_runs


def _by_looking(data, unit):
    runs = []
    for at in range(0, len(data), unit):
        end = min(at + unit, len(data))
        if not any(data[at:end]):
            continue
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((at, end))
    return runs


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 64, 512, 4096])
@pytest.mark.parametrize("rest", [0, 1, 7, 8, 63])
def test_the_runs_are_those_of_looking_at_every_byte(unit, rest):
    rng = random.Random(unit * 100 + rest)
    data = bytearray()
    for _ in range(60):
        piece = bytearray(unit)
        # Zeros but for one byte, at the front, across words, in the middle or at the end.
        for _ in range(rng.randrange(3)):
            piece[rng.choice((0, 1, 7, 8, 9, unit // 2, unit - 1)) % unit] = rng.randrange(256)
        data += piece
    data += bytes(rng.choice((0, 0, 1)) for _ in range(rest))
    view = memoryview(data)
    assert list(data_runs(view, unit)) == _by_looking(data, unit)
    assert list(data_runs(view[unit:], unit)) == _by_looking(data[unit:], unit)


def test_nothing_has_no_runs():
    assert list(data_runs(memoryview(b""), 4096)) == []
    assert list(data_runs(memoryview(bytes(8192)), 4096)) == []
