"""Exports of qemu-nbd and nbdkit are images like any other; whatever breaks says so in time."""

import os
import random
import signal
import subprocess
import threading
import time

import pytest

from tests.image.storage.peers import nbdkit, qemu_nbd, uri, wait_until
from wirt.errors import (
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    ImageNoSpace,
    UnsupportedImage,
    UsageError,
)
from wirt.image.base import ExtentKind
from wirt.image.convert import ConvertSettings, convert
from wirt.image.open import open_image
from wirt.image.storage.nbd import NbdStorage
from wirt.protocols.nbd.uri import parse_address

MIB = 1 << 20
KIT = pytest.mark.needs_tool("nbdkit")


@pytest.fixture
def disk(tmp_path):
    """A qcow2 of 32 MiB with data in every other MiB, and its bytes."""
    chance = random.Random(4)
    data = bytearray(32 * MIB)
    for at in range(0, len(data), 2 * MIB):
        data[at : at + MIB] = chance.randbytes(MIB)
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    return path, data


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nbd://host", ("", "host", 10809, "")),
        ("nbd://[::1]:99/a%20b", ("", "::1", 99, "a b")),
        ("nbd+unix:///e?socket=/s", ("/s", "", 10809, "e")),
        ("nbd:unix:/s:exportname=x", ("/s", "", 10809, "x")),
        ("nbd:host:7", ("", "host", 7, "")),
        ("nbd:[::1]:7:exportname=a:b", ("", "::1", 7, "a:b")),
    ],
)
def test_names_of_exports_are_understood(name, expected):
    address = parse_address(name)
    assert (address.socket, address.host, address.port, address.export) == expected


@pytest.mark.parametrize(
    "name",
    [
        "nbd:", "nbd:host", "nbd:host:x", "nbd:host:99999", "nbd:unix:", "nbd://", "nbd://h:x/",
        "nbd+unix:///e", "nbd+unix://h/e?socket=/s", "nbd://h?socket", "nbd://h?nonsense=1",
        "nbd://h?reconnect=x", "nbd://h?reconnect=-1", "nbd://h/%ff", "nbd:h:1:exportname=\udcff",
        "nbd://h/" + "x" * 5000, "nbd://[", "nbd://h/%00",
    ],
)  # fmt: skip
def test_what_names_no_export_is_a_usage_error(name):
    with pytest.raises(UsageError, match="names no NBD export"):
        open_image(name)


@pytest.mark.needs_tool("qemu-nbd")
@pytest.mark.needs_qemu_img
def test_an_export_of_qemu_nbd_is_read_written_and_converted(disk, tmp_path):
    path, data = disk
    socket = tmp_path / "s"
    with (
        qemu_nbd(socket, path, "-x", "e"),
        open_image(uri(socket, "e"), format="raw", writable=True) as image,
    ):
        assert image.pread(0, len(data)) == data
        runs = list(image.extents(0, len(data)))
        assert [run.kind for run in runs[:3]] == [
            ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.DATA,
        ]  # fmt: skip
        assert sum(run.length for run in runs) == len(data)
        chance = random.Random(5)
        for _ in range(40):
            at, length = chance.randrange(31 * MIB), chance.randrange(1, MIB)
            if chance.random() < 0.3:
                image.write_zeroes(at, length)
                data[at : at + length] = bytes(length)
            else:
                data[at : at + length] = piece = chance.randbytes(length)
                image.pwrite(at, piece)
        image.flush()
        assert image.pread(0, len(data)) == data
        convert([image], str(tmp_path / "out.raw"), "raw")
        assert (tmp_path / "out.raw").read_bytes() == data
        read_by_threads(image.storage)
        assert len(image.storage._connections) > 1
        with pytest.raises(ImageNoSpace):
            image.storage.pwrite(len(data), b"x")
        with pytest.raises(UnsupportedImage):
            image.resize(64 * MIB)


def read_by_threads(storage):
    """Read until two have met, and a second connection was made for one of them."""
    give_up = time.monotonic() + 120

    def read():
        while len(storage._connections) == 1 and time.monotonic() < give_up:
            storage.pread(0, 4 * MIB)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.needs_tool("qemu-nbd")
@pytest.mark.needs_qemu_img
def test_convert_writes_into_an_export_and_a_format_may_lie_inside_one(disk, tmp_path):
    path, data = disk
    target, socket = tmp_path / "target.qcow2", tmp_path / "s"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, "32M"], check=True)
    with qemu_nbd(socket, target, "-f", "qcow2"), open_image(str(path)) as source:
        convert([source], uri(socket), "raw", ConvertSettings(into_existing=True))
    with open_image(str(target)) as image:
        assert image.pread(0, len(data)) == data
    with (
        qemu_nbd(socket, path, "-f", "raw", "-r"),
        open_image(uri(socket)) as image,
    ):
        assert image.format_name == "qcow2"
        assert image.pread(0, len(data)) == data
        with pytest.raises(ImageAccessDenied):
            NbdStorage(uri(socket), writable=True)


@KIT
def test_one_connection_serves_many_threads(tmp_path):
    socket = tmp_path / "s"
    with (
        nbdkit(socket, "pattern", "64M", "--filter=noextents", "--filter=multi-conn",
               "multi-conn-mode=disable"),
        NbdStorage(uri(socket)) as storage,
    ):  # fmt: skip
        assert storage._most == 1
        wrong = []

        def read(seed):
            chance = random.Random(seed)
            for _ in range(40):
                at = chance.randrange(60 * MIB) // 8 * 8
                words = range(at, at + chance.randrange(1, 20000) * 8, 8)
                expected = b"".join(word.to_bytes(8) for word in words)
                if storage.pread(at, len(expected)) != expected:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert list(storage.extents(3, 5)) == [(3, 5, True)]


@KIT
@pytest.mark.parametrize("minimum", [512, 4096])
def test_a_server_that_wants_whole_blocks_gets_them(tmp_path, minimum):
    socket = tmp_path / "s"
    policy = (
        "--filter=blocksize-policy", f"blocksize-minimum={minimum}", "blocksize-maximum=64k",
        "blocksize-preferred=4096", "blocksize-error-policy=error",
    )  # fmt: skip
    with (
        nbdkit(socket, "memory", "1M", *policy),
        NbdStorage(uri(socket), writable=True) as storage,
    ):
        model = bytearray(MIB)
        chance = random.Random(1)
        for _ in range(30):
            at, length = chance.randrange(MIB), chance.randrange(1, 200_000)
            piece = chance.randbytes(min(length, MIB - at))
            storage.pwrite(at, piece)
            model[at : at + len(piece)] = piece
        assert storage.pread(0, MIB) == model
        assert storage.pread(MIB - 3, 10) == model[-3:]
        covered = [run[:2] for run in storage.extents(100, 5000)]
        assert covered[0][0] == 100
        assert sum(length for _, length in covered) == 5000


@KIT
def test_errors_of_the_server_keep_their_meaning_and_the_connection(tmp_path):
    socket = tmp_path / "s"
    failing = (
        "--filter=error",
        "error-pread=ENOSPC",
        "error-pread-rate=100%",
        f"error-file={tmp_path / 'trigger'}",
    )
    with nbdkit(socket, "memory", "1M", *failing), NbdStorage(uri(socket)) as storage:
        assert storage.pread(0, 512) == bytes(512)
        (tmp_path / "trigger").touch()
        with pytest.raises(ImageNoSpace, match="ENOSPC") as caught:
            storage.pread(4096, 512)
        assert caught.value.offset == 4096
        (tmp_path / "trigger").unlink()
        assert storage.pread(4096, 512) == bytes(512)
        assert not storage._connections[0].is_broken


@KIT
def test_a_server_that_does_not_answer_is_waited_for_until_the_deadline(tmp_path):
    socket = tmp_path / "s"
    with (
        nbdkit(socket, "memory", "1M", "--filter=delay", "rdelay=120"),
        NbdStorage(uri(socket)) as storage,
    ):
        storage._connections[0].set_timeout(1.0)
        with pytest.raises(ImageIoError, match="in time"):
            storage.pread(0, 512)


@KIT
def test_a_server_killed_in_the_middle_is_a_clear_error_for_every_thread(tmp_path):
    socket = tmp_path / "s"
    with (
        nbdkit(socket, "memory", "64M", "--filter=delay", "rdelay=600") as server,
        NbdStorage(uri(socket), writable=True) as storage,
    ):
        errors = []

        def read():
            try:
                storage.pread(0, 512)
            except ImageError as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: sum(one.in_flight for one in storage._connections) == len(threads))
        server.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(120)
        assert [type(error) for error in errors] == [ImageIoError] * 3
        assert all("connection" in str(error) for error in errors)
        with pytest.raises(ImageIoError):
            storage.pread(0, 512)


@pytest.mark.needs_tool("qemu-nbd")
@pytest.mark.needs_qemu_img
def test_reconnect_goes_on_with_a_new_server_but_lost_writes_are_told(disk, tmp_path):
    path, _ = disk
    socket = tmp_path / "s"
    with (
        qemu_nbd(socket, path) as first,
        NbdStorage(uri(socket, reconnect=60), writable=True) as storage,
    ):
        storage.pwrite(0, b"flushed" * 100)
        storage.flush()
        assert storage.pread(0, 7) == b"flushed"
        first.kill()
        first.wait()
        os.unlink(socket)
        with qemu_nbd(socket, path) as second:
            assert storage.pread(0, 7) == b"flushed"
            storage.pwrite(MIB, b"not flushed")
            second.kill()
            second.wait()
            os.unlink(socket)
            with qemu_nbd(socket, path):
                assert storage.pread(0, 7) == b"flushed"
                with pytest.raises(ImageIoError, match="may be lost"):
                    storage.flush()
                storage.pwrite(MIB, b"once more")
                storage.flush()


@pytest.mark.needs_tool("qemu-nbd")
@pytest.mark.needs_qemu_img
def test_an_export_that_was_resized_meanwhile_is_noticed(tmp_path):
    path, socket = tmp_path / "disk.raw", tmp_path / "s"
    path.write_bytes(bytes(MIB))
    with (
        qemu_nbd(socket, path, "-f", "raw") as server,
        NbdStorage(uri(socket, reconnect=60)) as storage,
    ):
        server.kill()
        server.wait()
        os.unlink(socket)
        os.truncate(path, 2 * MIB)
        with (
            qemu_nbd(socket, path, "-f", "raw"),
            pytest.raises(ImageIoError, match="from 1048576 to 2097152"),
        ):
            storage.pread(0, 512)


def test_a_server_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(ImageIoError, match="nothing listens"):
        open_image(uri(tmp_path / "nothing"))
    with pytest.raises(ImageIoError, match="cannot connect"):
        open_image("nbd://127.0.0.1:1/x")


@pytest.mark.needs_tool("qemu-nbd")
@pytest.mark.needs_qemu_img
def test_an_export_that_is_not_there_is_named(disk, tmp_path):
    with (
        qemu_nbd(tmp_path / "s", disk[0], "-x", "right"),
        pytest.raises(ImageIoError, match=r"(?i)no such export|not present") as caught,
    ):
        open_image(uri(tmp_path / "s", "wrong"))
    assert caught.value.hint
