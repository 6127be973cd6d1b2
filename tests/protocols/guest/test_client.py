"""The client against helpers that misbehave."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wirt.errors import GuestError, PeerClosed, ProtocolError, Timeout
from wirt.protocols.guest.client import GuestSession
from wirt.protocols.guest.codec import HELLO_SIZE, FrameType, encode_frame
from wirt.protocols.guest.messages import parse_text

Behaviour = Callable[[socket.socket], None]
Serve = Callable[[Behaviour], Path]
STARTED = encode_frame(FrameType.STARTED, b"\0\0\0\1")
EXIT = encode_frame(FrameType.EXIT, b"\0\0")


def greet(peer: socket.socket) -> None:
    peer.sendall(peer.recv(HELLO_SIZE, socket.MSG_WAITALL))


def answering(*answers: bytes) -> Behaviour:
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(65536)
        for answer in answers:
            peer.sendall(answer)
        while peer.recv(65536):
            pass

    return behave


def test_a_guest_without_a_helper_is_a_timeout(serve: Serve):
    def behave(peer: socket.socket) -> None:
        while peer.recv(65536):
            pass

    with pytest.raises(Timeout, match="helper did not answer") as error:
        GuestSession.connect(serve(behave), timeout=0.2)
    assert "may still boot" in error.value.hint


def test_a_flood_instead_of_a_greeting_is_a_timeout(serve: Serve):
    def behave(peer: socket.socket) -> None:
        while True:
            peer.sendall(b"x" * 65536)

    with pytest.raises(Timeout):
        GuestSession.connect(serve(behave), timeout=0.3)


def test_frames_before_any_request_are_a_protocol_error(serve: Serve):
    def behave(peer: socket.socket) -> None:
        hello = peer.recv(HELLO_SIZE, socket.MSG_WAITALL)
        peer.sendall(hello + EXIT)
        peer.recv(1)

    with pytest.raises(ProtocolError, match="before it was asked"):
        GuestSession.connect(serve(behave), timeout=60)


def test_a_command_that_never_starts_is_a_timeout(serve: Serve):
    with (
        GuestSession.connect(serve(answering()), timeout=60) as guest,
        pytest.raises(Timeout, match="did not start the command"),
    ):
        guest.exec(["true"], start_timeout=0.2)


def test_an_endless_output_ends_at_the_deadline(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(65536)
        peer.sendall(STARTED)
        while True:
            peer.sendall(encode_frame(FrameType.STDOUT, b"x" * 30000))

    with GuestSession.connect(serve(behave), timeout=60) as guest, pytest.raises(Timeout):
        guest.exec(["true"], timeout=0.3)


def test_a_guest_that_drips_does_not_extend_the_deadline(serve: Serve):
    def behave(peer: socket.socket) -> None:
        greet(peer)
        peer.recv(65536)
        peer.sendall(STARTED)
        while True:
            peer.sendall(encode_frame(FrameType.STDOUT, b"x"))
            time.sleep(0.02)

    with GuestSession.connect(serve(behave), timeout=60) as guest, pytest.raises(Timeout):
        guest.exec(["true"], timeout=0.3)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage",
        b"\0\x41\xff\xff\1",
        encode_frame(FrameType.STDIN, b"x"),
        encode_frame(FrameType.REPLY, b""),
        STARTED + encode_frame(FrameType.STDIN_ACK, b"\0\0\0\1"),
        STARTED + encode_frame(FrameType.STDIN_ACK, b"\0"),
        STARTED + encode_frame(FrameType.EXIT, b""),
        STARTED + EXIT + EXIT,
    ],
)
def test_a_wrong_answer_to_a_command_is_a_protocol_error(serve: Serve, answer: bytes):
    with (
        GuestSession.connect(serve(answering(answer)), timeout=60) as guest,
        pytest.raises(ProtocolError),
    ):
        guest.exec(["true"], timeout=60)


@pytest.mark.parametrize(
    "answer",
    [
        EXIT,
        encode_frame(FrameType.REPLY, b"\0\0\0\7too few"[:9]),
        encode_frame(FrameType.REPLY, b""),
        encode_frame(FrameType.REPLY, b"") * 2,
        encode_frame(FrameType.REPLY, b"\0\0\0\x0buptime=none"),
    ],
)
def test_a_wrong_answer_to_info_is_a_protocol_error(serve: Serve, answer: bytes):
    with (
        GuestSession.connect(serve(answering(answer)), timeout=60) as guest,
        pytest.raises(ProtocolError),
    ):
        guest.info(timeout=60)


def test_a_restarted_helper_is_peer_closed(serve: Serve):
    reset = encode_frame(FrameType.RESET)
    with (
        GuestSession.connect(serve(answering(STARTED + reset)), timeout=60) as guest,
        pytest.raises(PeerClosed, match="restarted"),
    ):
        guest.exec(["true"], timeout=60)


def test_words_of_the_guest_cannot_command_the_terminal(serve: Serve):
    error = encode_frame(FrameType.ERROR, b"bad \x1b]0;evil\x07\n\xff")
    with (
        GuestSession.connect(serve(answering(error)), timeout=60) as guest,
        pytest.raises(GuestError) as refusal,
    ):
        guest.exec(["true"], timeout=60)
    assert refusal.value.message == "bad ?]0;evil??\ufffd"
    assert len(parse_text(b"x" * 100_000)) == 4096
