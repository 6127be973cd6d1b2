"""``wirt img serve`` against the clients of QEMU and libnbd, and against bad ones."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.image.nbd_server.conftest import MIB, SIZE, converted, served_here
from tests.image.storage.peers import qemu_nbd, uri, wait_until
from wirt.errors import Busy, ImageIoError, ImageNoSpace, ProtocolError
from wirt.image.create import create_image
from wirt.image.nbd_server.listen import listening_unix
from wirt.image.nbd_server.server import Limits
from wirt.image.open import open_image
from wirt.image.storage.nbd import NbdStorage
from wirt.protocols.nbd import codec
from wirt.protocols.nbd.codec import Command, CommandFlag, Request

pytestmark = [pytest.mark.needs_qemu_img, pytest.mark.needs_tool("nbdcopy")]

FORMATS = [
    ("raw",), ("qcow2",), ("qcow2", "-c"), ("vmdk", "-o", "subformat=streamOptimized"),
    ("vpc", "-o", "force_size=on"), ("vhdx",), ("vdi",), ("qed",), ("parallels",),
]  # fmt: skip


def tool(*words, ok=(0,)):
    done = subprocess.run(
        list(map(str, words)), check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode in ok, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_nbdcopy_and_qemu_img_read_every_format_as_it_is(serve, raw, data, tmp_path, options):
    name, *more = options
    path = raw if name == "raw" else converted(raw, name, *more)
    server = serve(path, "--format", name, "--read-only", "--unix", tmp_path / "s", "-t")
    (where,) = server.uris
    tool("nbdcopy", where, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", where, raw)
    info = json.loads(tool("nbdinfo", "--json", where))["exports"][0]
    assert info["export-size"] == SIZE
    assert info["is_read_only"]
    assert info["can_multi_conn"]
    runs = json.loads(tool("nbdinfo", "--map", "--json", where))
    assert sum(run["length"] for run in runs) == SIZE
    for run in runs:
        if run["type"] & codec.STATE_ZERO:
            assert not any(data[run["offset"] : run["offset"] + run["length"]])
    server.send_signal(signal.SIGTERM)
    assert server.wait(300) == 0
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["raw", "qcow2", "vmdk", "vhdx", "vdi"])
def test_what_qemu_io_writes_is_in_the_image(serve, raw, tmp_path, name):
    path = raw if name == "raw" else converted(raw, name)
    server = serve(path, "--format", name, "--unix", tmp_path / "s")
    commands = [
        "write -P 7 1M 200k", "write -f -P 8 5M 64k", "write -z 2M 100k", "write -z -u 6M 1M",
        "discard 9M 512k", "aio_write -P 9 12M 3M", "aio_flush", "read -P 7 1M 200k",
        "read -P 0 2M 100k", "read -P 9 12M 3M", "flush",
    ]  # fmt: skip
    words = [word for command in commands for word in ("-c", command)]
    said = tool("qemu-io", "-f", "raw", *words, server.uris[0])
    assert "failed" not in said
    assert server.wait(300) == 0, "it ends when its last client has gone"
    said = tool("qemu-io", "-r", "-f", name, "-c", "read -P 7 1M 200k", "-c", "read -P 8 5M 64k",
                "-c", "read -P 0 6M 1M", "-c", "read -P 9 12M 3M", path)  # fmt: skip
    assert "failed" not in said
    if name in {"qcow2", "vdi", "vmdk"}:
        tool("qemu-img", "check", "-f", name, path)


@pytest.mark.parametrize("name", ["raw", "qcow2", "vhdx"])
def test_many_writers_at_once_leave_what_each_of_them_wrote(tmp_path, name):
    path = tmp_path / "disk"
    create_image(str(path), name, 16 * MIB)
    model = bytearray(16 * MIB)
    with (
        served_here(path, tmp_path / "s", name=name),
        NbdStorage(uri(tmp_path / "s", connections=4), writable=True) as storage,
    ):

        def work(part):
            chance = random.Random(part)
            for _ in range(40):
                at = part * 4 * MIB + chance.randrange(3 * MIB)
                length = chance.randrange(1, 300_000)
                if chance.random() < 0.3:
                    storage.punch_hole(at, length)
                    model[at : at + length] = bytes(length)
                else:
                    piece = chance.randbytes(length)
                    storage.pwrite(at, piece)
                    model[at : at + length] = piece
                assert storage.pread(at, length) == model[at : at + length]

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        storage.flush()
        assert len(storage._connections) > 1
        assert storage.pread(0, 16 * MIB) == model
    with open_image(str(path), format=name) as image:
        assert image.pread(0, 16 * MIB) == model


def test_a_flush_on_one_connection_covers_the_writes_of_all(serve, raw, tmp_path):
    path = converted(raw, "qcow2")
    server = serve(path, "--unix", tmp_path / "s", "-t")
    with NbdStorage(server.uris[0], writable=True) as first:
        with NbdStorage(server.uris[0], writable=True) as second:
            first.pwrite(MIB + 5, b"first")
            second.pwrite(2 * MIB, b"second")
            second.flush()
        server.kill()
        server.wait()
        with pytest.raises(ImageIoError):
            first.pread(0, 512)
    with open_image(str(path)) as image:
        assert image.pread(MIB + 5, 5) == b"first"
        assert image.pread(2 * MIB, 6) == b"second"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_flushes_and_closes(serve, raw, tmp_path, number):
    path = converted(raw, "qcow2")
    server = serve(path, "--unix", tmp_path / "s", "-t")
    with contextlib.suppress(ImageIoError), NbdStorage(server.uris[0], writable=True) as storage:
        storage.pwrite(MIB, b"not flushed by the client")
        server.send_signal(number)
        assert server.wait(300) == 0
    tool("qemu-img", "check", path)
    with open_image(str(path)) as image:
        assert image.pread(MIB, 25) == b"not flushed by the client"


def test_a_bitmap_is_told_as_qemu_nbd_tells_it(serve, raw, tmp_path):
    path = converted(raw, "qcow2")
    tool("qemu-img", "bitmap", "--add", "-g", "64k", path, "b0")
    tool("qemu-io", "-f", "qcow2", "-c", "write 1M 10k", "-c", "write 5M 3M", path)
    tool("qemu-img", "bitmap", "--disable", path, "b0")
    context = "qemu:dirty-bitmap:b0"
    with qemu_nbd(tmp_path / "q", path, "-r", "-B", "b0"):
        expected = json.loads(tool("nbdinfo", "--json", f"--map={context}", uri(tmp_path / "q")))
    server = serve(path, "-r", "--bitmap", "b0", "--unix", tmp_path / "s", "-t")
    found = json.loads(tool("nbdinfo", "--json", f"--map={context}", server.uris[0]))
    assert found == expected
    assert {run["type"] for run in found} == {0, 1}
    info = json.loads(tool("nbdinfo", "--json", server.uris[0]))["exports"][0]
    assert info["contexts"] == ["base:allocation", context]
    with pytest.raises(AssertionError, match="said nothing"):
        serve(path, "-r", "--bitmap", "none", "--unix", tmp_path / "s2", stderr=subprocess.DEVNULL)


def test_several_exports_are_listed_and_told_apart(serve, raw, data, tmp_path):
    one, other = converted(raw, "qcow2"), converted(raw, "vdi")
    server = serve(one, other, "-r", "--export", "a b", "--export", "ö", "--unix", tmp_path / "s",
                   "--description", "two of them", "-t")  # fmt: skip
    listed = json.loads(tool("nbdinfo", "--list", "--json", uri(tmp_path / "s")))["exports"]
    assert [entry["export-name"] for entry in listed] == ["a b", "ö"]
    assert listed[0]["description"] == "two of them"
    for where in server.uris:
        with open_image(where, format="raw") as image:
            assert image.pread(0, SIZE) == data
    with pytest.raises(ImageIoError, match="no such export"):
        open_image(uri(tmp_path / "s", "nothing"))


def test_a_read_only_export_refuses_writes_and_a_small_one_what_is_beyond(serve, raw, tmp_path):
    server = serve(raw, "-r", "--unix", tmp_path / "s", "-t")
    said = tool("qemu-io", "-f", "raw", "-c", "write 0 512", server.uris[0], ok=(0, 1))
    assert "Permission denied" in said
    path = converted(raw, "qcow2")
    with served_here(path, tmp_path / "w"), NbdStorage(uri(tmp_path / "w")) as storage:
        connection = storage._connections[0]
        with pytest.raises(Exception, match="ENOSPC"):
            connection.write(SIZE - 1, memoryview(b"xy"))
        with pytest.raises(Exception, match="EINVAL"):
            connection.read_into(SIZE, memoryview(bytearray(1)))
        with pytest.raises(Exception, match="EINVAL"):
            connection.command(Command.FLUSH, flags=CommandFlag.DF)
        with pytest.raises(Exception, match="EINVAL"):
            connection._call(Command.READ, 1 << 9, 0, 0)
        connection.write(0, memoryview(b"xy"), flags=CommandFlag.FUA)
        connection.command(Command.CACHE, 0, MIB)
        view = memoryview(bytearray(2))
        connection.read_into(0, view)
        assert bytes(view) == b"xy"


def test_a_full_disk_reaches_the_client_as_no_space(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    create_image(str(path), "qcow2", MIB)
    with (
        served_here(path, tmp_path / "s"),
        NbdStorage(uri(tmp_path / "s"), writable=True) as storage,
    ):
        monkeypatch.setattr("os.pwrite", _no_space)
        with pytest.raises(ImageNoSpace):
            storage.pwrite(0, b"x" * 65536)
        monkeypatch.undo()
        storage.pwrite(0, b"y" * 65536)
        assert storage.pread(0, 65536) == b"y" * 65536


def _no_space(*_):
    raise OSError(28, "No space left on device")


def test_the_image_is_locked_against_others_and_read_only_ones_are_shared(serve, raw, tmp_path):
    path = converted(raw, "qcow2")
    serve(path, "--unix", tmp_path / "s", "-t")
    assert "lock" in tool("qemu-io", "-c", "write 0 512", path, ok=(1,))
    with pytest.raises(AssertionError, match="said nothing"):
        serve(path, "--unix", tmp_path / "s2", stderr=subprocess.DEVNULL)
    with pytest.raises(AssertionError, match="said nothing"):
        serve(raw, "-r", "--unix", tmp_path / "s", stderr=subprocess.DEVNULL)
    for number in range(2):
        serve(raw, "-r", "--unix", tmp_path / f"r{number}")


def test_a_raw_disk_is_written_only_if_it_is_said_to_be_one(serve, raw, tmp_path):
    with pytest.raises(AssertionError, match="said nothing"):
        serve(raw, "--unix", tmp_path / "s", stderr=subprocess.DEVNULL)


def test_a_socket_that_a_killed_server_left_is_taken_over(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with listening_unix(path), pytest.raises(Busy, match="somebody listens"), listening_unix(path):
        pass
    assert not os.path.exists(path)
    (tmp_path / "file").touch()
    with pytest.raises(Busy, match="no socket"), listening_unix(str(tmp_path / "file")):
        pass
    assert (tmp_path / "file").exists()


# Bad clients


def test_a_client_that_vanishes_in_the_middle_harms_nobody_else(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(8 * MIB))
    with (
        served_here(path, tmp_path / "s", name="raw") as server,
        NbdStorage(uri(tmp_path / "s"), writable=True) as storage,
    ):
        for cut in (3, 27, 28, 29, 60_000):
            line = NbdStorage(uri(tmp_path / "s"))._connections[0]._line
            request = Request(0, Command.WRITE, 1, 4096, 65536)
            line.send((codec.encode_request(request) + b"x" * 65536)[:cut])
            line.close()
        # One that asks for much and reads nothing of it.
        greedy = NbdStorage(uri(tmp_path / "s"))._connections[0]._line
        for cookie in range(20):
            greedy.send(codec.encode_request(Request(0, Command.READ, cookie, 0, 8 * MIB)))
        storage.pwrite(0, b"alive")
        assert storage.pread(0, 5) == b"alive"
        assert storage.pread(4096, 65536) == bytes(65536)
        greedy.close()
        wait_until(lambda: len(server._clients) == 1)


def test_a_client_that_drips_is_cut_off_and_others_are_served_meanwhile(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with served_here(path, tmp_path / "s", name="raw", limits=Limits(clients=4)) as server:
        ended = 0
        with NbdStorage(uri(tmp_path / "s")) as storage:
            server._limits = Limits(clients=4, handshake=1.0)  # for those that come from now on
            drips = [socket.socket(socket.AF_UNIX) for _ in range(2)]
            for drip in drips:
                drip.connect(str(tmp_path / "s"))
            assert storage.pread(0, 512) == bytes(512)
            deadline = time.monotonic() + 60
            for drip in drips:
                with contextlib.suppress(OSError):
                    while time.monotonic() < deadline:
                        drip.send(b"\0")
                        time.sleep(0.05)
                ended += time.monotonic() < deadline
                drip.close()
        assert ended == 2
        wait_until(lambda: not server._clients)


def test_more_clients_than_allowed_are_turned_away(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with served_here(path, tmp_path / "s", name="raw", limits=Limits(clients=2)):
        with (
            NbdStorage(uri(tmp_path / "s")),
            NbdStorage(uri(tmp_path / "s")),
            pytest.raises(ImageIoError, match="connection"),
        ):
            NbdStorage(uri(tmp_path / "s"))
        wait_until(lambda: _can_open(tmp_path / "s"))


def _can_open(path):
    try:
        NbdStorage(uri(path)).close()
    except ImageIoError:
        return False
    return True


def test_a_write_beyond_the_bound_ends_only_that_connection(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with (
        served_here(path, tmp_path / "s", name="raw"),
        NbdStorage(uri(tmp_path / "s")) as other,
        NbdStorage(uri(tmp_path / "s")) as bad,
    ):
        line = bad._connections[0]._line
        line.send(codec.encode_request(Request(0, Command.WRITE, 1, 0, 1 << 31)))
        with pytest.raises(ProtocolError):
            line.receive(1)
        assert other.pread(0, 512) == bytes(512)


def test_a_client_is_told_when_the_server_is_killed_in_the_middle(serve, raw, tmp_path):
    server = serve(raw, "-r", "--unix", tmp_path / "s", "-t")
    process = subprocess.Popen(
        ["stdbuf", "-oL", "qemu-io", "-r", "-f", "raw", server.uris[0]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    process.stdin.write("read 0 512\n")
    process.stdin.flush()
    assert "read 512/512 bytes" in process.stdout.readline()
    server.kill()
    server.wait()
    said, _ = process.communicate("read 0 512\n", timeout=600)
    assert "read failed" in said
