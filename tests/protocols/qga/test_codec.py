import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirt.errors import ProtocolError
from wirt.protocols.qga.codec import (
    SENTINEL,
    Failure,
    QgaDecoder,
    Return,
    encode_command,
    encode_sync,
    parse_message,
)

SYNC = SENTINEL + b'{"return": 42}\n'


def synchronising() -> QgaDecoder:
    decoder = QgaDecoder()
    decoder.expect_sync(42)
    return decoder


def test_a_sync_request_resets_the_parser_of_the_agent_first():
    line = encode_sync(5)
    assert line[:1] == b"\xff"
    assert json.loads(line[1:]) == {"execute": "guest-sync-delimited", "arguments": {"id": 5}}


def test_bytes_travel_as_base64():
    line = encode_command("guest-file-write", {"buf-b64": b"\x00\xff"})
    assert json.loads(line)["arguments"]["buf-b64"] == "AP8="


@pytest.mark.parametrize(
    "stale",
    [
        b"",
        b'{"return": {}}\n{"return": 7}\n',
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
        b'{"return": {"half',
        SENTINEL + b'{"return": 41}\n',
        SENTINEL * 3,
        SENTINEL + b"x" * 10_000_000,
        SENTINEL + b'{"return": [',
        b"\x00\x80 garbage \n",
    ],
)
def test_everything_before_the_awaited_answer_is_thrown_away(stale: bytes):
    decoder = synchronising()
    (message,) = decoder.feed(stale + SYNC + b'{"return": {}}\n')
    assert decoder.synchronised
    assert isinstance(message, Return)


@given(st.binary(max_size=60), st.data())
def test_synchronising_does_not_depend_on_how_the_stream_is_cut(stale: bytes, data: st.DataObject):
    stream = stale + SYNC
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = synchronising()
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert not list(decoder.feed(stream[a:b]))
    assert decoder.synchronised


def test_an_endless_stale_line_takes_no_memory():
    decoder = synchronising()
    for _ in range(100):
        list(decoder.feed(SENTINEL + b"x" * 100_000))
    assert len(decoder._unfinished) < 2000


def test_a_refusal_is_read():
    line = b'{"error": {"class": "CommandNotFound", "desc": "no"}}'
    assert parse_message(line) == Failure("CommandNotFound", "no")


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b'{"return": 1, "error": {"class": "a", "desc": "b"}}', b'{"error": 1}']
)
def test_a_line_that_is_neither_return_nor_error_is_a_protocol_error(line: bytes):
    with pytest.raises(ProtocolError):
        parse_message(line)


@given(st.lists(st.binary(max_size=100)), st.booleans())
def test_any_bytes_are_messages_or_a_protocol_error(chunks: list[bytes], sync: bool):
    decoder = synchronising() if sync else QgaDecoder()
    with suppress(ProtocolError):
        for chunk in chunks:
            list(decoder.feed(chunk))
