"""TLS between ours and theirs, with certificates made for the test."""

import contextlib
import socket
import subprocess
import time

import pytest

from tests.image.nbd_server.conftest import SIZE, served_here
from tests.image.storage.peers import running, wait_until
from wirt.errors import HostError, ImageAccessDenied, ImageIoError
from wirt.image.nbd_server.server import Limits
from wirt.image.open import open_image
from wirt.image.storage.nbd import NbdStorage
from wirt.protocols.nbd import codec, tls

pytestmark = [pytest.mark.needs_tool("openssl"), pytest.mark.needs_tool("nbdinfo")]


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=600)


def _authority(place, name):
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", f"/CN={name}",
            "-keyout", place / "ca-key.pem", "-out", place / "ca-cert.pem")  # fmt: skip


def _signed(place, side, name):
    key, request = place / f"{side}-key.pem", place / "request.pem"
    more = place / "extensions"
    more.write_text(f"subjectAltName=DNS:{name}\n")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key,
            "-out", request)  # fmt: skip
    openssl("x509", "-req", "-in", request, "-CA", place / "ca-cert.pem", "-CAkey",
            place / "ca-key.pem", "-CAcreateserial", "-days", 2, "-extfile", more,
            "-out", place / f"{side}-cert.pem")  # fmt: skip


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Directories: one with all, one with the CA only, one of another CA."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("all", "ca", "other")}
    for name in ("all", "other"):
        _authority(places[name], f"CA {name}")
        _signed(places[name], "server", "localhost")
        _signed(places[name], "client", "someone")
    (places["ca"] / "ca-cert.pem").write_bytes((places["all"] / "ca-cert.pem").read_bytes())
    return places


@pytest.fixture
def secured(serve, raw, certificates):
    """Serve the raw disk over TLS on a free port; return host and port."""
    server = serve(raw, "-r", "-t", "--tcp", "127.0.0.1:0", "--tls-x509", certificates["all"])
    (where,) = server.uris
    return where.removeprefix("nbds://").rstrip("/")


def _uri(place, directory, **parameters):
    more = "".join(f"&{name.replace('_', '-')}={value}" for name, value in parameters.items())
    return f"nbds://{place}/?tls-certificates={directory}{more}"


def test_ours_and_libnbd_read_over_tls(secured, certificates, data):
    with open_image(
        _uri(secured, certificates["all"], tls_hostname="localhost"), format="raw"
    ) as image:
        assert image.pread(0, SIZE) == data
        assert len(list(image.extents(0, SIZE))) > 1
    place = secured.replace("127.0.0.1", "localhost")
    done = subprocess.run(
        ["nbdinfo", "--size", _uri(place, certificates["all"])],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stdout.strip() == str(SIZE), done.stderr


def test_a_wrong_name_a_wrong_ca_or_no_certificate_is_refused(secured, certificates):
    with pytest.raises(ImageIoError, match="certificate is not good") as caught:
        open_image(_uri(secured, certificates["all"]))  # 127.0.0.1 is not in it
    assert "ca-cert.pem" in caught.value.hint
    with pytest.raises(ImageIoError, match="certificate is not good"):
        open_image(_uri(secured, certificates["other"], tls_hostname="localhost"))
    with pytest.raises(ImageIoError):  # the server wants one of the client's too
        open_image(_uri(secured, certificates["ca"], tls_hostname="localhost"))
    with pytest.raises(ImageAccessDenied, match="wants TLS") as caught:
        open_image(f"nbd://{secured}/")
    assert "nbds://" in caught.value.hint


def test_a_client_that_drips_its_tls_handshake_is_cut_off(raw, certificates, tmp_path):
    secured, limits = tls.server_x509(str(certificates["all"])), Limits(handshake=1.5)
    place = tmp_path / "s"
    with (
        served_here(raw, place, name="raw", read_only=True, tls=secured, limits=limits) as server,
        socket.socket(socket.AF_UNIX) as drip,
    ):
        drip.settimeout(60)
        drip.connect(str(place))
        hello = b"\x16\x03\x01\x40\x00" + bytes(10_000)
        deadline = time.monotonic() + 60
        with contextlib.suppress(OSError):  # it is cut off, at the latest in the handshake
            drip.recv(18, socket.MSG_WAITALL)
            drip.send(codec.CLIENT_FLAGS.pack(3) + codec.encode_option(codec.Option.STARTTLS))
            drip.recv(20, socket.MSG_WAITALL)
            for byte in hello:
                assert time.monotonic() < deadline, "it may drip for ever"
                drip.send(bytes([byte]))
                time.sleep(0.1)
        wait_until(lambda: not server._clients)


def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(certificates):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = _uri(f"127.0.0.1:{listener.getsockname()[1]}", certificates["all"])
        with pytest.raises(ImageIoError, match=r"in time|agreement"):
            NbdStorage(where, timeout=1.0)


@pytest.mark.needs_tool("qemu-nbd")
def test_ours_reads_from_qemu_nbd_over_tls(raw, data, certificates, tmp_path):
    place = tmp_path / "s"
    creds = f"tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={certificates['all']}"
    with (
        running("qemu-nbd", "-t", "-r", "-f", "raw", "-k", place, "-e", 4, "--object", creds,
                "--tls-creds", "t", raw, socket=place),
        open_image(f"nbds+unix:///?socket={place}&tls-certificates={certificates['all']}",
                   format="raw") as image,
    ):  # fmt: skip
        assert image.pread(0, SIZE) == data


def test_a_directory_without_certificates_is_named(tmp_path):
    with pytest.raises(HostError, match="certificates in"):
        tls.server_x509(str(tmp_path))
    with pytest.raises(HostError, match="certificates in"):
        tls.client_x509(str(tmp_path), "localhost")


def test_keys_are_read_as_psktool_writes_them(tmp_path):
    (tmp_path / "keys").write_text("# comment\nwirt:00ff10\n\nother:aa\n")
    assert tls.read_keys(str(tmp_path / "keys")) == {"wirt": b"\0\xff\x10", "other": b"\xaa"}
    (tmp_path / "keys").write_text("wirt:xyz\n")
    with pytest.raises(HostError, match="USER:HEX"):
        tls.read_keys(str(tmp_path / "keys"))
    with pytest.raises(HostError, match="No such file"):
        tls.read_keys(str(tmp_path / "nothing"))


@pytest.mark.needs_tool("qemu-nbd")
def test_shared_keys_work_between_ours_and_theirs(serve, raw, data, tmp_path):
    keys = tmp_path / "keys.psk"
    keys.write_text("wirt:" + "5a" * 32 + "\n")
    server = serve(raw, "-r", "-t", "--unix", tmp_path / "o", "--tls-psk", keys)
    where = server.uris[0].replace("nbds+unix://", "nbds+unix://wirt@")
    more = f"&tls-psk-file={keys}"
    with open_image(where + more, format="raw") as image:
        assert image.pread(0, SIZE) == data
    done = subprocess.run(
        ["nbdinfo", "--size", where + more],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == str(SIZE), done.stderr
    place = tmp_path / "s"
    creds = f"tls-creds-psk,id=t,endpoint=server,dir={tmp_path}"
    with (
        running("qemu-nbd", "-t", "-r", "-f", "raw", "-k", place, "--object", creds,
                "--tls-creds", "t", raw, socket=place),
        open_image(f"nbds+unix://wirt@/?socket={place}{more}", format="raw") as image,
    ):  # fmt: skip
        assert image.pread(0, SIZE) == data


def test_a_wrong_key_or_an_unknown_user_is_refused(serve, raw, tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("wirt:" + "5a" * 32 + "\n")
    wrong.write_text("wirt:" + "5b" * 32 + "\nother:" + "5a" * 32 + "\n")
    server = serve(raw, "-r", "-t", "--unix", tmp_path / "o", "--tls-psk", right)
    place = server.uris[0].replace("nbds+unix://", "nbds+unix://{}@")
    for user in ("wirt", "other"):
        with pytest.raises(ImageIoError, match=r"TLS failed|broke|closed"):
            open_image(place.format(user) + f"&tls-psk-file={wrong}")
    with pytest.raises(HostError, match="no key of"):
        open_image(place.format("nobody") + f"&tls-psk-file={wrong}")
    open_image(place.format("wirt") + f"&tls-psk-file={right}", format="raw").close()
