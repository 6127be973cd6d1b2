import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirt.errors import ProtocolError
from wirt.protocols.jsonlines import decode
from wirt.protocols.qmp.codec import (
    Event,
    Failure,
    Greeting,
    QemuVersion,
    QmpDecoder,
    Return,
    encode_command,
    parse_message,
)
from wirt.protocols.qmp.messages import MigrationChange, StatusInfo

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, '
    b'"package": "Debian"}, "capabilities": ["oob"]}}\r\n'
)


def test_a_conversation_is_read_message_by_message():
    decoder = QmpDecoder()
    greeting, done, refused, event = decoder.feed(
        GREETING
        + b'{"return": {}, "id": 1}\r\n'
        + b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\r\n'
        + b'{"event": "MIGRATION", "data": {"status": "active"}, '
        + b'"timestamp": {"seconds": 5, "microseconds": 6}}\r\n'
    )
    assert isinstance(greeting, Greeting)
    assert greeting.version.qemu == QemuVersion(7, 2, 22)
    assert isinstance(done, Return)
    assert (done.id, bytes(done.value)) == (1, b"{}")
    assert refused == Failure(2, "GenericError", "no")
    assert isinstance(event, Event)
    assert (event.name, event.seconds, event.microseconds) == ("MIGRATION", 5, 6)
    assert event.data_as(MigrationChange) == MigrationChange("active")


def test_an_event_without_data_has_an_empty_object():
    event = parse_message(b'{"event":"STOP","timestamp":{"seconds":-1,"microseconds":-1}}')
    assert isinstance(event, Event)
    assert bytes(event.data) == b"{}"


def test_an_error_may_come_without_an_id():
    line = b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}'
    assert parse_message(line) == Failure(None, "GenericError", "JSON parse error")


def test_a_command_is_one_line():
    assert encode_command("stop", None, 7) == b'{"execute":"stop","id":7}\n'
    line = encode_command("cont", {"text": "a\nb"}, 8)
    assert line.count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b"17",
        b'"text"',
        b'{"return": {}, "event": "STOP"}',
        b'{"return": {}, "error": {"class": "a", "desc": "b"}}',
        b'{"return": {}, "id": []}',
        b'{"event": 5}',
        b'{"error": "no"}',
        b'{"error": {"class": "GenericError"}}',
        b'{"event": "STOP", "timestamp": {"seconds": 1e400, "microseconds": 0}}',
        b'{"event": "STOP", "timestamp": 1}',
        b'{"QMP": {}}',
        b'{"QMP": {"version": {"qemu": {"major": "7", "minor": 2, "micro": 1}}}}',
        b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_line_that_is_no_qmp_message_is_a_protocol_error(line: bytes):
    with pytest.raises(ProtocolError):
        parse_message(line)


def test_a_reply_that_lacks_a_member_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="running"):
        decode(b'{"status": "running"}', StatusInfo, "the answer to query-status")


_names = st.sampled_from(["QMP", "return", "error", "event", "data", "timestamp", "id", "class"])
_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "é"])
_values = _leaves | st.lists(_leaves, max_size=3) | st.dictionaries(_names, _leaves, max_size=3)


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes):
    with suppress(ProtocolError):
        list(QmpDecoder(max_line=200).feed(data + b"\n"))


@given(st.dictionaries(_names, _values, max_size=5))
def test_any_object_is_a_message_or_a_protocol_error(value: dict[str, object]):
    with suppress(ProtocolError):
        parse_message(json.dumps(value).encode())
