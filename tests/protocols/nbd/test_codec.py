"""Both sides of NBD, played against each other and against garbage, without a socket."""

import random

import pytest

from wirt.errors import CommandRefused, PeerClosed, ProtocolError, WirtError
from wirt.image.create import create_image
from wirt.image.nbd_server.export import Export
from wirt.image.nbd_server.server import Offer
from wirt.image.nbd_server.session import Session
from wirt.image.open import open_image
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.client import Connection
from wirt.protocols.nbd.client_handshake import Wish, list_exports, negotiate
from wirt.protocols.nbd.codec import Command, ExportFlag, Option, Request
from wirt.protocols.nbd.server_handshake import Hangup, admit
from wirt.protocols.nbd.steps import Receive, Send, StartTls

MIB = 1 << 20
ROUNDS = 400


class Line:
    """A connection whose peer has said all it will ever say."""

    is_tls = False
    name = "test"

    def __init__(self, data):
        self._data = data
        self.sent = bytearray()
        self.closed = False

    def receive(self, length):
        if length > len(self._data):
            raise PeerClosed("no more")
        got, self._data = self._data[:length], self._data[length:]
        return got

    def receive_into(self, view):
        view[:] = self.receive(len(view))

    def receive_parts(self, first, second):
        self.receive_into(first)
        self.receive_into(second)

    def send(self, *parts):
        for part in parts:
            self.sent += part

    def send_file(self, header, fd, offset, length):
        self.sent += header + bytes(length)

    def run(self, handshake, tls=None, deadline=None):
        got = b""
        try:
            while True:
                step = handshake.send(got) if got else next(handshake)
                got = b""
                if isinstance(step, Send):
                    self.send(step.data)
                elif isinstance(step, Receive):
                    got = self.receive(step.length)
        except StopIteration as end:
            return end.value

    def set_timeout(self, seconds):
        pass

    def shut_down(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def exports(tmp_path):
    made = []
    for name, kind in (("raw", "raw"), ("other", "qcow2")):
        path = str(tmp_path / name)
        create_image(path, kind, MIB)
        image = open_image(path, format=kind, writable=True)
        image.pwrite(4096, b"data" * 1024)
        made.append(Export(name, image, read_only=False, description=f"the {kind} one"))
    yield made
    for export in made:
        export.close()


def talk(client, server):
    """Run both sides until both are done; return what they agreed and what the server said."""
    waiting = {"client": b"", "server": b""}
    said = {"client": bytearray(), "server": bytearray()}
    results = {}
    steps = {"client": next(client), "server": next(server)}
    sides = {"client": client, "server": server}
    while steps:
        before = dict(steps)
        for side, other in (("client", "server"), ("server", "client")):
            if side not in steps:
                continue
            step, brought = steps[side], None
            if isinstance(step, Send):
                waiting[other] += step.data
                said[side] += step.data
                brought = b""
            elif isinstance(step, StartTls):
                brought = b""
            elif len(waiting[side]) >= step.length:
                brought, waiting[side] = (
                    waiting[side][: step.length],
                    waiting[side][step.length :],
                )
            if brought is None:
                continue
            try:
                steps[side] = sides[side].send(brought or None)
            except StopIteration as end:
                results[side] = end.value
                del steps[side]
            except Hangup as error:
                results[side] = error
                del steps[side]
        assert steps != before or not steps, "both wait for each other"
    return results["client"], results["server"], said


def test_client_and_server_come_to_an_agreement(exports):
    agreed, chosen, _ = talk(negotiate(Wish("other")), admit(Offer(exports, tls_required=False)))
    assert agreed.size == MIB
    assert agreed.structured
    assert agreed.contexts == (("base:allocation", 0),)
    assert agreed.flags & ExportFlag.CAN_MULTI_CONN
    assert agreed.description == "the qcow2 one"
    assert chosen.name == "other"
    assert chosen.contexts == {0: "base:allocation"}


def test_a_list_names_every_export(exports):
    found, end, _ = talk(list_exports(tls=False), admit(Offer(exports, tls_required=False)))
    assert [entry.name for entry in found] == ["raw", "other"]
    assert isinstance(end, Hangup)


def test_what_was_said_before_tls_is_forgotten(exports):
    agreed, chosen, _ = talk(
        negotiate(Wish("raw", tls=True)), admit(Offer(exports, tls_required=True))
    )
    assert agreed.structured
    assert chosen.structured


def _refused(wish, offer):
    client, server = negotiate(wish), admit(offer)
    with pytest.raises((CommandRefused, ProtocolError)) as caught:
        talk(client, server)
    return caught.value


def test_refusals_say_why(exports):
    assert "no such export" in str(_refused(Wish("nothing"), Offer(exports, tls_required=False)))
    tls = _refused(Wish("raw"), Offer(exports, tls_required=True))
    assert "wants TLS" in str(tls)
    assert "nbds://" in tls.hint
    assert "TLS" in str(_refused(Wish("raw", tls=True), Offer(exports, tls_required=False)))


def test_an_old_client_is_served_by_export_name(exports):
    line = Line(codec.CLIENT_FLAGS.pack(1) + codec.encode_option(Option.EXPORT_NAME, b"other"))
    chosen = line.run(admit(Offer(exports, tls_required=False)))
    assert chosen.name == "other"
    assert not chosen.structured
    assert len(line.sent) == 18 + 10 + 124


@pytest.mark.parametrize(
    "options",
    [
        [(Option.GO, b"\0\0\0\x09short\0\0")],
        [(Option.GO, codec.encode_go("raw", ()) + b"x")],
        [(Option.SET_META_CONTEXT, codec.encode_contexts("raw", ["base:allocation"]))],
        [(Option.STRUCTURED_REPLY, b"x")],
        [(Option.STRUCTURED_REPLY, b""), (Option.STRUCTURED_REPLY, b"")],
        [(Option.LIST, b"x")],
        [(99, b"whatever")],
        [(Option.STARTTLS, b"")],
    ],
    ids=str,
)
def test_a_wrong_option_is_answered_with_an_error_and_the_talk_goes_on(exports, options):
    words = b"".join(codec.encode_option(*option) for option in options)
    line = Line(
        codec.CLIENT_FLAGS.pack(3) + words + codec.encode_option(Option.GO, codec.encode_go("", ()))
    )
    assert line.run(admit(Offer(exports, tls_required=False))).name == ""
    replies = bytes(line.sent[18:])
    kinds = []
    while replies:
        _, _, kind, length = codec.OPTION_REPLY.unpack(replies[:20])
        kinds.append(kind)
        replies = replies[20 + length :]
    assert kinds[len(options) - 1] & 1 << 31


def mutations(data, seed, count=ROUNDS):
    chance = random.Random(seed)
    for _ in range(count):
        victim = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 6])):
            at = chance.randrange(len(victim))
            victim[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        if chance.random() < 0.2:
            del victim[chance.randrange(len(victim)) :]
        if chance.random() < 0.1:
            at = chance.randrange(len(victim) + 1)
            victim[at:at] = chance.randbytes(chance.randrange(40))
        yield bytes(victim)


def test_a_mad_client_gets_errors_and_harms_nothing(exports):
    """Nothing but a ProtocolError leaves the server's side, whatever it is told."""
    _, _, said = talk(negotiate(Wish("other")), admit(Offer(exports, tls_required=False)))
    requests = [
        Request(0, Command.READ, 1, 0, 8192),
        Request(0, Command.BLOCK_STATUS, 2, 0, MIB),
        Request(1, Command.WRITE_ZEROES, 3, 4096, 4096),
        Request(0, Command.TRIM, 4, 8192, 4096),
        Request(0, Command.CACHE, 5, 0, 65536),
        Request(0, Command.FLUSH, 6, 0, 0),
    ]
    stream = bytes(said["client"]) + b"".join(map(codec.encode_request, requests))
    stream += codec.encode_request(Request(0, Command.WRITE, 7, 0, 512)) + b"w" * 512
    answered = 0
    for data in mutations(stream, 11):
        line = Line(data)
        try:
            chosen = line.run(admit(Offer(exports, tls_required=False)))
            export = Offer(exports, tls_required=False).find(chosen.name)
            Session(line, export, structured=chosen.structured, contexts=chosen.contexts).run()
        except ProtocolError:
            pass
        answered += len(line.sent) > 200
    assert answered > ROUNDS // 4


def test_a_mad_server_gets_nothing_but_a_protocol_error_out_of_the_client(exports):
    _, chosen, said = talk(negotiate(Wish("other")), admit(Offer(exports, tls_required=False)))
    asked = Line(
        codec.encode_request(Request(0, Command.READ, 1, 0, 8192))
        + codec.encode_request(Request(0, Command.BLOCK_STATUS, 2, 0, MIB))
        + codec.encode_request(Request(0, Command.READ, 3, MIB, 512))
        + codec.encode_request(Request(0, Command.FLUSH, 4, 0, 0))
    )
    with pytest.raises(PeerClosed):
        Session(asked, exports[1], structured=True, contexts=chosen.contexts).run()
    stream = bytes(said["server"]) + bytes(asked.sent)
    outcomes = {"whole": 0, "refused": 0, "broken": 0}
    for data in [stream, *mutations(stream, 12)]:
        outcomes[_conversation(data)] += 1
    assert outcomes["refused"] >= 1
    assert outcomes["broken"] > ROUNDS // 4


def _conversation(data):
    try:
        connection = Connection(Line(data), Wish("other"), timeout=5)
        view = memoryview(bytearray(8192))
        connection.read_into(0, view)
        assert sum(length for length, _ in connection.block_status(0, MIB)) > 0
        try:
            connection.read_into(MIB, memoryview(bytearray(512)))
        except CommandRefused:
            connection.command(Command.FLUSH)
            return "refused"
    except ProtocolError:
        return "broken"
    except WirtError as error:
        raise AssertionError(f"{type(error)} for {data!r}") from error
    return "whole"


@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 4096), (0, 4096)],
        [(0, 4096)],
        [(0, 4096), (4095, 4097)],
        [(0, 8193)],
        [(-512, 512), (0, 8192)],
        [(at, 1) for at in range(8192)],
    ],
    ids=["twice", "gap", "overlap", "more", "before", "crumbs"],
)
def test_data_that_do_not_fit_the_request_are_refused(exports, chunks):
    _, _, said = talk(negotiate(Wish("raw")), admit(Offer(exports, tls_required=False)))
    parts = []
    for index, (at, length) in enumerate(chunks, 1):
        done = index == len(chunks)
        parts.append(codec.encode_chunk(codec.ChunkType.OFFSET_DATA, 1, length + 8, done=done))
        parts.append(codec.OFFSET.pack(65536 + at) + bytes(length))
    connection = Connection(Line(bytes(said["server"]) + b"".join(parts)), Wish("raw"), timeout=5)
    with pytest.raises(ProtocolError):
        connection.read_into(65536, memoryview(bytearray(8192)))
    assert connection.is_broken


def test_a_broken_connection_stays_broken_and_is_closed(exports):
    _, _, said = talk(negotiate(Wish("raw")), admit(Offer(exports, tls_required=False)))
    line = Line(bytes(said["server"]))
    connection = Connection(line, Wish("raw"), timeout=5)
    for _ in range(2):
        with pytest.raises(PeerClosed):
            connection.command(Command.FLUSH)
    assert line.closed
