import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirt.errors import ProtocolError
from wirt.protocols.guest.codec import (
    MAGIC,
    MAX_PAYLOAD,
    VERSION,
    Frame,
    FrameType,
    GuestDecoder,
    encode_frame,
    encode_frames,
    encode_request,
    parse_exit,
    parse_number,
    parse_strings,
)


def greeted() -> GuestDecoder:
    decoder = GuestDecoder()
    assert not list(decoder.feed(MAGIC + decoder.nonce + bytes([VERSION])))
    return decoder


def test_the_magic_has_no_zero_and_no_border():
    assert len(MAGIC) == 16
    assert 0 not in MAGIC
    assert all(MAGIC[:n] != MAGIC[-n:] for n in range(1, 16))


def test_frames_are_read_however_the_stream_is_cut():
    stream = encode_frame(FrameType.STDOUT, b"a" * 1000) + encode_frame(FrameType.EXIT, b"\0\7")
    for cut in (1, 3, 5, 700, 1005, 1006, 1011):
        decoder = greeted()
        frames = decoder.feed(stream[:cut]) + decoder.feed(stream[cut:])
        assert frames == [Frame(FrameType.STDOUT, b"a" * 1000), Frame(FrameType.EXIT, b"\0\7")]


def test_everything_before_the_answer_to_our_hello_is_thrown_away():
    decoder = GuestDecoder()
    stale = encode_frame(FrameType.STDOUT, b"old") + MAGIC + b"another nonce..." + b"\x01"
    answer = MAGIC + decoder.nonce + bytes([VERSION])
    assert not list(decoder.feed(stale + b"x" * 1_000_000 + answer[:20]))
    assert len(decoder._pending) < 100
    frames = list(decoder.feed(answer[20:] + encode_frame(FrameType.STDOUT, b"new")))
    assert frames == [Frame(FrameType.STDOUT, b"new")]


def test_a_helper_of_another_version_is_named():
    decoder = GuestDecoder()
    with pytest.raises(ProtocolError, match="protocol 9, not 1") as error:
        list(decoder.feed(MAGIC + decoder.nonce + b"\x09"))
    assert "rebuild" in error.value.hint


@pytest.mark.parametrize("place", [0, 1, 100, MAX_PAYLOAD - 20, MAX_PAYLOAD - 8, MAX_PAYLOAD])
def test_the_magic_is_never_in_what_the_host_sends(place: int):
    payload = b"x" * place + MAGIC + MAGIC + b"y" * MAX_PAYLOAD
    stream = encode_frames(FrameType.STDIN, payload)
    assert MAGIC not in stream
    assert MAGIC not in encode_request([payload])


@given(st.integers(0, 15), st.integers(0, 40))
def test_a_magic_across_a_frame_boundary_is_hidden_by_the_header(part: int, shift: int):
    payload = b"z" * (MAX_PAYLOAD - part) + MAGIC + bytes(shift) + MAGIC
    assert MAGIC not in encode_frames(FrameType.STDIN, payload)


def test_strings_are_read_back():
    strings = [b"", b"one", b"\0" * 300]
    body = b"".join(struct.pack(">I", len(string)) + string for string in strings)
    assert parse_strings(body) == strings


@pytest.mark.parametrize("body", [b"\0", b"\0\0\0\5four", b"\xff\xff\xff\xff"])
def test_a_reply_that_ends_early_is_a_protocol_error(body: bytes):
    with pytest.raises(ProtocolError):
        parse_strings(body)


def test_an_exit_is_a_code_or_128_and_a_signal():
    assert parse_exit(Frame(FrameType.EXIT, b"\0\7")) == 7
    assert parse_exit(Frame(FrameType.EXIT, b"\1\x09")) == 137
    for bad in (b"", b"\0", b"\2\0", b"\0\0\0"):
        with pytest.raises(ProtocolError):
            parse_exit(Frame(FrameType.EXIT, bad))


def test_a_number_has_four_bytes():
    assert parse_number(Frame(FrameType.STARTED, b"\0\0\1\0")) == 256
    with pytest.raises(ProtocolError):
        parse_number(Frame(FrameType.STARTED, b"\0\0\1"))


@pytest.mark.parametrize(
    "data", [b"\1\x41\0\0\0", b"\0\x41\0\0\1", b"\0\x03\0\0\0", b"\0\xff\0\0\0"]
)
def test_what_is_no_frame_of_a_guest_is_a_protocol_error(data: bytes):
    with pytest.raises(ProtocolError):
        list(greeted().feed(data))


@given(st.lists(st.binary(max_size=100)), st.booleans())
def test_any_bytes_are_frames_or_a_protocol_error(chunks: list[bytes], after_greeting: bool):
    decoder = greeted() if after_greeting else GuestDecoder()
    with suppress(ProtocolError):
        for chunk in chunks:
            for frame in decoder.feed(chunk):
                parse_strings(frame.payload)
