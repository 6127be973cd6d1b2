"""Files on real servers: web, FTP, TFTP; and servers that lie, stall, change and vanish."""

import os
import random
import shutil
import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress

import pytest

from tests.image.storage import servers
from wirt.errors import (
    ImageAccessDenied,
    ImageError,
    ImageIoError,
    OutOfBounds,
    UnsupportedImage,
    UsageError,
)
from wirt.image.compare import compare
from wirt.image.convert import convert
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.storage import tftp
from wirt.image.storage.ftp import FtpStorage
from wirt.image.storage.http import HttpStorage
from wirt.image.storage.tftp import TftpStorage
from wirt.image.storage.url import parse_url

MIB = 1 << 20
SIZE = 9 * MIB + 12_345


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What the servers serve: a plain file, an empty one and a qcow2 image."""
    top = tmp_path_factory.mktemp("served")
    for path in (top, top.parent, top.parent.parent):
        path.chmod(0o755)  # the servers give up their rights
    (top / "disk.raw").write_bytes(random.Random(7).randbytes(SIZE))
    (top / "empty").write_bytes(b"")
    (top / "name with space").write_bytes(b"space")
    with open_image(str(top / "disk.raw"), format="raw") as source:
        convert([source], str(top / "disk.qcow2"), "qcow2")
    (top / "disk.qcow2").chmod(0o644)
    (top / "not-served").mkdir()
    shutil.copy(top / "disk.qcow2", top / "not-served")
    return top


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """(certificate, key) for localhost, and a context that trusts it."""
    pair = servers.certificate(tmp_path_factory.mktemp("tls"))
    return pair, ssl.create_default_context(cafile=str(pair[0]))


def whole(storage):
    """Read in odd pieces, forwards, then here and there."""
    data = b"".join(storage.pread(offset, 700_001) for offset in range(0, storage.size(), 700_001))
    rng = random.Random(1)
    for _ in range(20):
        offset = rng.randrange(max(1, storage.size()))
        length = rng.randrange(300_000)
        assert storage.pread(offset, length) == data[offset : offset + length]
    assert storage.pread(storage.size(), 10) == b""
    return data


def pictures(url, root):
    """Open the image on the server as any other, and compare it with the local one."""
    # in.tftpd locks what it serves, a little longer than its client needs it.
    with open_image(url) as far, open_image(str(root / "not-served" / "disk.qcow2")) as near:
        assert far.format_name == "qcow2"
        assert compare(far, near).identical


nginx = pytest.mark.needs_tool("nginx")
vsftpd = [pytest.mark.needs_tool("vsftpd"), pytest.mark.needs_root]


@nginx
def test_a_web_server_gives_every_byte(root, tmp_path):
    with servers.nginx(root, tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        with HttpStorage(f"{url}/disk.raw") as storage:
            assert whole(storage) == (root / "disk.raw").read_bytes()
        with HttpStorage(f"{url}/there") as storage:
            assert storage.size() == SIZE
        with HttpStorage(f"{url}/name%20with%20space") as storage:
            assert storage.pread(0, 100) == b"space"
        with HttpStorage(f"{url}/empty") as storage:
            assert storage.size() == 0
            assert storage.pread(0, 10) == b""
        pictures(f"{url}/disk.qcow2", root)


@nginx
def test_a_web_server_over_tls(root, tls, tmp_path):
    pair, trusting = tls
    with servers.nginx(root, tmp_path, tls=pair) as port:
        with HttpStorage(f"https://localhost:{port}/disk.raw", tls=trusting) as storage:
            assert whole(storage) == (root / "disk.raw").read_bytes()
        with pytest.raises(ImageAccessDenied, match="not trusted"):
            HttpStorage(f"https://localhost:{port}/disk.raw")


@nginx
@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("plain/disk.raw", UnsupportedImage, "parts of a file"),
        ("nothing", ImageIoError, "no such file"),
        ("loop", ImageIoError, "without end"),
        ("busy", ImageIoError, "503"),
        ("secret/disk.raw", ImageAccessDenied, "401"),
    ],
)
def test_what_a_web_server_refuses_is_said(path, error, words, root, tmp_path):
    with servers.nginx(root, tmp_path) as port, pytest.raises(error, match=words):
        HttpStorage(f"http://127.0.0.1:{port}/{path}", pause=0.01)


@nginx
def test_user_and_password_are_sent_and_never_shown(root, tmp_path):
    with servers.nginx(root, tmp_path) as port:
        with HttpStorage(f"http://user:word@127.0.0.1:{port}/secret/disk.raw") as storage:
            assert storage.size() == SIZE
            assert "word" not in storage.name
        with pytest.raises(ImageAccessDenied) as caught:
            HttpStorage(f"http://user:wrong@127.0.0.1:{port}/secret/disk.raw")
        assert "wrong" not in str(caught.value)


@nginx
def test_a_file_that_changes_on_the_web_server_is_noticed(root, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "disk").write_bytes(os.urandom(12 * MIB))
    with (
        servers.nginx(served, tmp_path / "n") as port,
        HttpStorage(f"http://127.0.0.1:{port}/disk") as storage,
    ):
        storage.pread(0, 100)
        (served / "disk").write_bytes(os.urandom(11 * MIB))
        with pytest.raises(ImageIoError, match="changed on the server"):
            storage.pread(10 * MIB, 100)


@nginx
def test_a_web_server_that_comes_back_is_asked_again(root, tmp_path):
    with servers.nginx(root, tmp_path) as port:
        storage = HttpStorage(f"http://127.0.0.1:{port}/disk.raw", pause=0.01)
        storage.pread(0, 100)
    with storage:
        with pytest.raises(ImageIoError, match="does not answer"):
            storage.pread(8 * MIB, 100)
        with servers.nginx(root, tmp_path, port=port):
            expected = (root / "disk.raw").read_bytes()[8 * MIB : 8 * MIB + 100]
            assert storage.pread(8 * MIB, 100) == expected


@contextmanager
def script(*answers):
    """A server that says ``answers`` one after the other, whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for answer in answers:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, suppress(OSError):  # who has heard enough hangs up
                peer.settimeout(60)
                peer.recv(65536)
                peer.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


PART = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes %s\r\nContent-Length: %d\r\n\r\n%s"
LIES = {
    "no HTTP": b"SSH-2.0-x\r\n",
    "another place": PART % (b"5-5/10", 1, b"x"),
    "no total": PART % (b"0-0/*", 1, b"x"),
    "a huge number": PART % (b"0-0/" + b"9" * 30, 1, b"x"),
    "too long": PART % (b"0-0/10", 100, b"x" * 100),
    "cut off": PART % (b"0-0/10", 1, b""),
    "endless headers": b"HTTP/1.1 206 OK\r\n" + b"A: b\r\n" * 5000,
    "out of the web": b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_web_server_that_lies_is_an_error(lie):
    with script(*[lie] * 4) as port, pytest.raises((ImageError, UsageError)):
        HttpStorage(f"http://127.0.0.1:{port}/x", pause=0)


class TestFtp:
    pytestmark = vsftpd

    def test_every_byte(self, root, tmp_path):
        with servers.vsftpd(root, tmp_path) as port:
            url = f"ftp://127.0.0.1:{port}"
            with FtpStorage(f"{url}/disk.raw") as storage:
                assert whole(storage) == (root / "disk.raw").read_bytes()
            with FtpStorage(f"{url}/empty") as storage:
                assert storage.pread(0, 1) == b""
            with FtpStorage(f"{url}/name%20with%20space") as storage:
                assert storage.pread(0, 100) == b"space"
            pictures(f"{url}/disk.qcow2", root)
            with pytest.raises(ImageIoError, match="refuses"):
                FtpStorage(f"{url}/nothing")
            with pytest.raises(ImageAccessDenied, match="refuses"):
                FtpStorage(f"ftp://nobody-here:x@127.0.0.1:{port}/disk.raw")

    @pytest.mark.parametrize("implicit", [False, True])
    def test_over_tls(self, implicit, root, tls, tmp_path):
        pair, trusting = tls
        with servers.vsftpd(root, tmp_path, tls=pair, implicit=implicit) as port:
            with FtpStorage(f"ftps://localhost:{port}/disk.raw", tls=trusting) as storage:
                assert whole(storage) == (root / "disk.raw").read_bytes()
            with pytest.raises(ImageAccessDenied, match="not trusted"):
                FtpStorage(f"ftps://localhost:{port}/disk.raw")

    def test_a_server_that_ends_is_an_error(self, root, tmp_path):
        with servers.vsftpd(root, tmp_path) as port:
            storage = FtpStorage(f"ftp://127.0.0.1:{port}/disk.raw", pause=0.01)
            storage.pread(0, 100)
        with storage, pytest.raises(ImageIoError, match="does not answer"):
            storage.pread(8 * MIB, 100)

    def test_a_file_that_changes_is_noticed(self, tmp_path):
        served = tmp_path / "served"
        served.mkdir()
        for path in (served, tmp_path, tmp_path.parent, tmp_path.parent.parent):
            path.chmod(0o755)
        (served / "disk").write_bytes(bytes(12 * MIB))
        with (
            servers.vsftpd(served, tmp_path / "v") as port,
            FtpStorage(f"ftp://127.0.0.1:{port}/disk", pause=0.01) as storage,
        ):
            storage.pread(0, 100)
            (served / "disk").write_bytes(bytes(11 * MIB))
            with pytest.raises(ImageIoError, match="changed on the server"):
                storage.pread(10 * MIB, 100)


@pytest.mark.needs_tool("in.tftpd")
@pytest.mark.needs_root
def test_tftp_gives_every_byte(root):
    with servers.tftpd(root) as port:
        with TftpStorage(f"tftp://127.0.0.1:{port}/disk.raw") as storage:
            assert whole(storage) == (root / "disk.raw").read_bytes()
        with TftpStorage(f"tftp://127.0.0.1:{port}/empty") as storage:
            assert storage.size() == 0
        pictures(f"tftp://127.0.0.1:{port}/disk.qcow2", root)
        with pytest.raises(ImageIoError, match="refuses"):
            TftpStorage(f"tftp://127.0.0.1:{port}/nothing")


@contextmanager
def tftp_server(data, *, options=(), lose=(), limit=None):
    """A server that agrees to ``options``, and sends the blocks ``lose`` only the second time."""
    terms = dict(options)
    block, window = int(terms.get("blksize", 512)), int(terms.get("windowsize", 1))
    lost = set(lose)
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    transfer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    transfer.bind(("127.0.0.1", 0))
    transfer.settimeout(0.5)
    last = len(data) // block + 1 if limit is None else limit

    def send(peer, number):
        if number in lost:
            lost.discard(number)
            return
        body = (data * 2)[:block] if limit else data[(number - 1) * block : number * block]
        transfer.sendto(struct.pack("!HH", 3, number & 0xFFFF) + body, peer)

    def answer_to(send_all):
        """Return what the client acknowledges; what was lost is sent again."""
        while True:
            send_all()
            with suppress(TimeoutError):
                return struct.unpack("!HH", transfer.recv(2000)[:4])[1]

    def serve():
        _, peer = listener.recvfrom(2000)
        acknowledged = 0
        if options:
            words = b"".join(f"{k}\0{v}\0".encode() for k, v in options)
            answer_to(lambda: transfer.sendto(b"\0\6" + words, peer))

        def send_window():
            for number in range(acknowledged + 1, min(acknowledged + window, last) + 1):
                send(peer, number)

        while acknowledged < last:
            acknowledged += (answer_to(send_window) - acknowledged) & 0xFFFF

    def run():
        with suppress(OSError):  # the test is over, and its sockets are closed
            serve()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        transfer.close()
        thread.join(10)


@pytest.mark.parametrize(
    "options",
    [
        (),
        (("blksize", 1024),),
        (("blksize", 1024), ("windowsize", 8)),
        (("tsize", 100_000), ("windowsize", 16)),
        (("blksize", 99_999),),
    ],
    ids=str,
)
def test_tftp_options_and_losses(options, monkeypatch):
    monkeypatch.setattr(tftp, "_SECONDS", 0.2)
    data = os.urandom(100_000)
    agreed = [(k, v) for k, v in options if k != "blksize" or v < 2000]
    with (
        tftp_server(data, options=agreed, lose=(1, 3, 9, 90)) as port,
        TftpStorage(f"tftp://127.0.0.1:{port}/x") as storage,
    ):
        assert storage.pread(0, 200_000) == data


def test_tftp_blocks_are_counted_past_65535(monkeypatch):
    data = random.Random(3).randbytes(65_600 * 8 + 5)
    with (
        tftp_server(data, options=(("blksize", 8), ("windowsize", 16))) as port,
        TftpStorage(f"tftp://127.0.0.1:{port}/x") as storage,
    ):
        assert storage.pread(0, len(data)) == data


def test_tftp_that_never_ends_is_stopped(monkeypatch):
    with tftp_server(os.urandom(512), limit=1 << 20) as port, pytest.raises(OutOfBounds):
        TftpStorage(f"tftp://127.0.0.1:{port}/x", limit=100_000)


def test_tftp_silence_is_an_error(monkeypatch):
    monkeypatch.setattr(tftp, "_SECONDS", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(ImageIoError, match="no answer"):
            TftpStorage(f"tftp://127.0.0.1:{silent.getsockname()[1]}/x")


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///x", "http://h:99999/x", "ftp://h/", "http://h/a b", "ftp://h/a%0d%0aDELE",
     "tftp://h/", "https://[::1/x"],
)  # fmt: skip
def test_addresses_that_are_none(url):
    with pytest.raises((UsageError, ImageError)):
        open_image(url)


def test_addresses_are_taken_apart():
    url = parse_url("http://a%40b:c@[::1]:80/p%20q?r=s", {"http": 80})
    assert (url.user, url.password, url.host, url.path) == ("a@b", "c", "::1", "/p%20q?r=s")
    assert url.shown == "http://[::1]:80/p%20q?r=s"


def test_a_server_of_files_is_not_written_to(tmp_path):
    with script(PART % (b"0-0/10", 1, b"x")) as port:
        with pytest.raises(ImageAccessDenied, match="cannot be written"):
            open_image(f"http://127.0.0.1:{port}/x", format="raw", writable=True)
        with pytest.raises(UsageError, match="nothing can be made"):
            create_image(f"http://127.0.0.1:{port}/x", "raw", MIB)
