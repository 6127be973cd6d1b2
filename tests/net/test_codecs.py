"""Bytes and words from outside: consoles, captures, frames, ends of cables, backends."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirt.errors import CommandRefused, ProtocolError, UsageError
from wirt.net.cable import LocalEnd, PathEnd, SshEnd, parse_end
from wirt.net.console import parse_reply
from wirt.net.frame import summary
from wirt.net.pcap import Frame, PcapDecoder, pack_frame, pack_header
from wirt.net.switch import PortVlan, parse_addresses, parse_ports, parse_vlans
from wirt.spec.backend_text import format_backend, parse_backend
from wirt.spec.nic import Passt, Socket, Switch, Tap, User, Vde
from wirt.vm.network.capture import header_length

quick = settings(deadline=None, max_examples=200)

PORTS = """\
Port 0002 untagged_vlan=0007 ACTIVE - NOT Unnamed Allocatable
 Current User: root Access Control: (User: NONE - Group: NONE)
 IN:  pkts         10          bytes                  852
 OUT: pkts          9          bytes                  700
  -- endpoint ID 0007 module unix prog   : wirt web nic0
Port 0008 untagged_vlan=0000 INACTIVE - Unnamed Allocatable
 Current User: NONE Access Control: (User: NONE - Group: NONE)
 IN:  pkts          0          bytes                    0
 OUT: pkts          0          bytes                    0
""".splitlines()
VLANS = ["VLAN 0000", "VLAN 0007", " -- Port 0008 tagged=1 active=0 status=Learning"]


def test_a_console_answers_with_data_or_a_refusal():
    data = b"0000 DATA END WITH '.'\nVLAN 0000\n.\n1000 Success\n\nvde$ "
    assert parse_reply("vlan/print", data) == ["VLAN 0000"]
    assert parse_reply("x", b"1000 Success\n\nvde$ ") == []
    with pytest.raises(CommandRefused, match="File exists"):
        parse_reply("port/create 1", b"1017 File exists\n\nvde$ ")


@quick
@given(st.binary(max_size=300))
def test_whatever_a_console_says_is_lines_or_a_declared_error(data):
    with contextlib.suppress(ProtocolError):
        parse_reply("x", data)
    text = data.decode("ascii", "replace").splitlines()
    parse_ports(text, text)
    parse_addresses(text)


def test_ports_have_counters_plugs_and_vlans():
    two, eight = parse_ports(PORTS, VLANS)
    assert (two.number, two.vlan, two.active, two.reserved) == (2, 7, True, True)
    assert (two.received_packets, two.sent_bytes, two.plugs) == (10, 700, ("wirt web nic0",))
    assert (eight.active, eight.tagged) == (False, (7,))
    line = "Hash: 0052 Addr: 52:54:00:00:00:01 VLAN 0007 to port: 003  age 12 secs"
    (address,) = parse_addresses([line])
    assert (address.mac, address.vlan, address.port, address.age) == ("52:54:00:00:00:01", 7, 3, 12)


def test_vlans_are_ports_and_numbers():
    assert parse_vlans("1=7,8=7t") == (PortVlan(1, 7), PortVlan(8, 7, tagged=True))
    for text in ("1", "1=5000", "0=1", "a=b", "1=2;3=4"):
        with pytest.raises(UsageError):
            parse_vlans(text)


@quick
@given(st.lists(st.binary(min_size=0, max_size=2000), max_size=5), st.integers(1, 700))
def test_captured_frames_survive_in_any_pieces(frames, size):
    data = pack_header() + b"".join(pack_frame(Frame(1.5, f, len(f))) for f in frames)
    decoder = PcapDecoder()
    found = [f for at in range(0, len(data), size) for f in decoder.feed(data[at : at + size])]
    assert [frame.data for frame in found] == frames


@quick
@given(st.binary(max_size=400))
def test_whatever_a_capture_holds_is_frames_or_a_declared_error(data):
    for start in (b"", pack_header()):
        with contextlib.suppress(ProtocolError):
            PcapDecoder().feed(start + data)


def test_a_capture_with_a_frame_beyond_bounds_is_refused():
    with pytest.raises(ProtocolError, match="bytes"):
        PcapDecoder().feed(pack_header() + struct.pack("<IIII", 0, 0, 1 << 31, 1 << 31))


@quick
@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8100, 0x1234, 3]))
def test_every_frame_has_a_line(payload, kind):
    line = summary(bytes(12) + struct.pack(">H", kind) + payload)
    assert line
    assert line.isprintable()


def test_frames_are_told_as_people_do():
    macs = bytes.fromhex("525400000002525400000001")
    ip = bytes.fromhex("4500002800010000400600000a0000010a000002")
    tcp = struct.pack(">HHIIBBHHH", 40000, 80, 0, 0, 0x50, 0x02, 0, 0, 0)
    assert summary(macs + b"\x08\x00" + ip + tcp) == "10.0.0.1:40000 > 10.0.0.2:80 TCP SYN, 0"
    tagged = macs + b"\x81\x00\x00\x07\x08\x00" + ip + tcp
    assert summary(tagged).startswith("vlan 7 10.0.0.1:40000")
    arp = bytes.fromhex("00010800060400015254000000010a0000010000000000000a000002")
    assert summary(macs + b"\x08\x06" + arp) == "ARP who has 10.0.0.2? tell 10.0.0.1"


def test_the_header_of_virtio_is_told_from_a_frame():
    frame = bytes.fromhex("525400000002525400000001") + b"\x08\x00" + bytes(46)
    assert header_length(frame) == 0
    assert header_length(bytes(10) + b"\1\0" + frame) == 12


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("dmz", LocalEnd("dmz")),
        ("dmz:8", LocalEnd("dmz", 8)),
        ("vde:///run/vde/ctl", PathEnd("/run/vde/ctl")),
        ("ssh://host2/dmz", SshEnd("host2", "dmz")),
        ("ssh://root@host2:2222//run/x/ctl", SshEnd("host2", "/run/x/ctl", "root", 2222)),
    ],
)
def test_ends_of_cables(text, end):
    assert parse_end(text) == end


@pytest.mark.parametrize(
    "text",
    ["cmd://sh -c id", "a,b", "dmz[1]", "vde://x", "ssh://-oProxyCommand=x/y", "ssh://h/a b",
     "ssh://h/$(id)", "ssh://h/a;b", "ssh://h", "", "dmz\n", "ptp:///x"],
)  # fmt: skip
def test_nothing_else_is_an_end_of_a_cable(text):
    with pytest.raises(UsageError):
        parse_end(text)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("user", User()),
        ("switch=dmz,vlan=7", Switch("dmz", 7)),
        ("bridge=br0", Tap(bridge="br0")),
        ("tap", Tap()),
        ("vde=/run/x/ctl", Vde("/run/x/ctl")),
        ("socket,listen=127.0.0.1:7000", Socket(listen="127.0.0.1:7000")),
        ("passt", Passt()),
    ],
)
def test_backends_in_a_word(text, backend):
    assert parse_backend(text) == backend
    assert format_backend(backend)


@pytest.mark.parametrize("text", ["vde=cmd://sh", "switch=a b", "nothing", "user=x", "switch", ""])
def test_what_is_no_backend_is_refused(text):
    with pytest.raises(UsageError):
        parse_backend(text)
