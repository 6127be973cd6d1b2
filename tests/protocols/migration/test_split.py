"""The migration stream split into memory and the rest; whatever comes, pieces or ProtocolError."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirt.errors import ProtocolError
from wirt.protocols.migration.split import PAGE_SIZE, Pages, Passed, Splitter, Zeroes

SIZE = 64 * PAGE_SIZE
NAME = b"pc-q35-7.2"
HEAD = b"QEVM\0\0\0\3" + b"\7" + struct.pack(">I", len(NAME)) + NAME
REST = b"\4" + b"devices" * 100
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20


def section(kind, body):
    start = struct.pack(">BI", kind, 2)
    if kind == 1:
        start += b"\3ram" + struct.pack(">II", 0, 4)
    return start + body + struct.pack(">Q", _EOS) + b"\x7e" + struct.pack(">I", 2)


def sizes(*blocks):
    total = sum(size for _, size in blocks)
    body = struct.pack(">Q", total | _MEM_SIZE)
    for name, size in blocks:
        body += bytes([len(name)]) + name + struct.pack(">Q", size)
    return body


SETUP = section(1, sizes((b"ram", SIZE), (b"vga.vram", 4 * PAGE_SIZE)))


class Writer:
    """Records as QEMU writes them: CONTINUE where the block is that of the record before."""

    def __init__(self):
        self.block = None

    def record(self, block, page, data):
        flag = _ZERO if len(data) == 1 else _PAGE
        name = b""
        if block == self.block:
            flag |= _CONTINUE
        else:
            name = bytes([len(block)]) + block
        self.block = block
        return struct.pack(">Q", page * PAGE_SIZE | flag) + name + data


def page(seed):
    return random.Random(seed).randbytes(PAGE_SIZE)


def stream(records):
    """Return a stream of the records in two parts, and the memory that it makes."""
    writer, memory, bodies = Writer(), bytearray(SIZE), [b"", b""]
    for index, (block, number, data) in enumerate(records):
        bodies[index * 2 // max(1, len(records))] += writer.record(block, number, data)
        if block == b"ram":
            whole = data * PAGE_SIZE if len(data) == 1 else data
            memory[number * PAGE_SIZE : (number + 1) * PAGE_SIZE] = whole
    whole = HEAD + SETUP + section(2, bodies[0]) + section(3, bodies[1]) + REST
    return whole, bytes(memory)


def split(whole, cuts):
    splitter = Splitter(SIZE)
    memory, passed, begin = bytearray(b"\xee" * SIZE), b"", 0
    for end in [*cuts, len(whole)]:
        for piece in splitter.feed(whole[begin:end]):
            if isinstance(piece, Passed):
                passed += piece.data
            else:
                data = piece.data if isinstance(piece, Pages) else bytes(piece.length)
                memory[piece.offset : piece.offset + len(data)] = data
        begin = end
    splitter.end()
    return memory, passed


RECORDS = st.lists(
    st.tuples(
        st.sampled_from([b"ram", b"ram", b"ram", b"vga.vram"]),
        st.integers(0, 3),
        st.one_of(st.just(b"\0"), st.integers(0, 9).map(page)),
    ),
    max_size=40,
)


@given(RECORDS, st.lists(st.integers(0, 200_000), max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_memory_comes_out_and_the_rest_is_again_a_stream(records, cuts):
    everything = [(b"ram", number, b"\0") for number in range(SIZE // PAGE_SIZE)]
    whole, memory = stream([*everything, *records])
    got, passed = split(whole, sorted(min(cut, len(whole)) for cut in cuts))
    assert got == memory
    rest_only, _ = stream([one for one in records if one[0] != b"ram"])
    again, same = split(rest_only, []), split(passed, [])
    assert again[1] == same[1] or _records_of(passed) == _records_of(rest_only)
    assert passed.endswith(REST)


def _records_of(whole):
    """Return the bytes of a stream without the borders of its parts."""
    border = b"\x7e" + struct.pack(">I", 2) + struct.pack(">BI", 2, 2)
    return whole.replace(struct.pack(">Q", _EOS) + border, b"").replace(
        struct.pack(">Q", _EOS) + border[:5] + struct.pack(">BI", 3, 2), b""
    )


def test_long_runs_are_taken_at_once():
    records = [(b"ram", number, page(number)) for number in range(32)]
    records += [(b"ram", number, b"\0") for number in range(32, 64)]
    whole, memory = stream(records)
    pieces = Splitter(SIZE).feed(whole)
    assert len([piece for piece in pieces if isinstance(piece, Pages)]) <= 4
    assert len([piece for piece in pieces if isinstance(piece, Zeroes)]) <= 4
    assert split(whole, [])[0] == memory


@pytest.mark.parametrize(
    "whole",
    [
        b"QEVM\0\0\0\2" + HEAD[8:],
        HEAD[:8] + b"\5",
        b"QEVM\0\0\0\3\7\xff\xff\xff\xff",
        HEAD + b"\1" + struct.pack(">I", 2) + b"\5block" + bytes(8),
        HEAD + section(1, sizes((b"ram", 2 * SIZE))),
        HEAD + section(1, sizes((b"pc.rom", SIZE))),
        HEAD + SETUP + section(2, struct.pack(">Q", SIZE | _PAGE) + b"\3ram" + bytes(PAGE_SIZE)),
        HEAD + SETUP + section(2, struct.pack(">Q", _PAGE | _CONTINUE) + bytes(PAGE_SIZE)),
        HEAD + SETUP + section(2, struct.pack(">Q", 0x80)),
        HEAD + SETUP + b"\x63",
    ],
    ids=["version", "no-configuration", "endless-name", "other-part", "too-large", "no-memory",
         "beyond", "continues-nothing", "unknown-flag", "unknown-section"],
)  # fmt: skip
def test_what_is_not_such_a_stream_is_refused(whole):
    with pytest.raises(ProtocolError):
        Splitter(SIZE).feed(whole)


def test_a_stream_that_ends_within_the_memory_is_refused():
    splitter = Splitter(SIZE)
    splitter.feed(HEAD + SETUP)
    with pytest.raises(ProtocolError):
        splitter.end()


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(max_examples=300)
def test_no_bytes_raise_anything_else(noise, place):
    whole, _ = stream([(b"ram", 1, page(1)), (b"vga.vram", 0, page(2)), (b"ram", 2, b"\0")])
    damaged = whole[:place] + noise + whole[place + len(noise) :]
    splitter = Splitter(SIZE)
    try:
        for begin in range(0, len(damaged), 777):
            for piece in splitter.feed(damaged[begin : begin + 777]):
                if not isinstance(piece, Passed):
                    assert piece.offset < SIZE
        splitter.end()
    except ProtocolError:
        pass
