import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirt.errors import ProtocolError
from wirt.protocols.jsonlines import LineBuffer, decode


@given(st.lists(st.binary(max_size=40)), st.data())
def test_lines_do_not_depend_on_how_the_stream_is_cut(lines: list[bytes], data: st.DataObject):
    stream = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    buffer = LineBuffer(4096)
    got = [line for piece in pieces for line in buffer.feed(piece)]
    assert got == [line for line in stream.split(b"\n") if line and not line.isspace()]


def test_a_line_of_exactly_the_bound_passes_and_one_more_byte_is_refused():
    assert list(LineBuffer(4).feed(b"1234\n")) == [b"1234"]
    with pytest.raises(ProtocolError, match="more than 4 bytes"):
        list(LineBuffer(4).feed(b"12345\n"))


def test_an_endless_line_is_refused_before_it_ends():
    buffer = LineBuffer(1000)
    for _ in range(10):
        list(buffer.feed(b"x" * 100))
    with pytest.raises(ProtocolError):
        list(buffer.feed(b"x"))
    assert len(buffer) == 0


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"nonsense", b"\xff", b'"\xff"', b"[" * 100_000, b'{"a":' * 100_000, b"1e999999"],
)
def test_what_is_not_json_is_a_protocol_error(text: bytes):
    with pytest.raises(ProtocolError, match="the answer"):
        decode(text, dict[str, int], "the answer")
