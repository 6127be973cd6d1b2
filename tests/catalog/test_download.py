from __future__ import annotations

import ssl
import subprocess
import sys

import pytest

from wirt.catalog.download import download
from wirt.errors import HostError, NotFound, ProtocolError, UsageError
from wirt.errors import NoSpace as NoSpaceError

BODY = bytes(range(256)) * 4096


def test_a_file_arrives_whole_with_progress(site, tmp_path):
    site.files["/a"] = BODY
    seen = []
    download(site.address + "/a", tmp_path / "a", progress=lambda *values: seen.append(values))
    assert (tmp_path / "a").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_cut_connection_is_continued_where_it_stopped(site, tmp_path):
    site.files["/a"] = BODY
    site.cut_after = [300_000, 200_000]
    download(site.address + "/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY
    ranges = [wanted for _, wanted in site.requests]
    assert ranges == ["", "bytes=300000-", "bytes=500000-"]


def test_a_part_of_an_earlier_command_is_continued(site, tmp_path):
    site.files["/a"] = BODY
    site.cut_after = [300_000, 0, 0, 0]
    with pytest.raises(HostError, match="cut off") as error:
        download(site.address + "/a", tmp_path / "a", pause=0)
    assert "continues" in error.value.hint
    site.cut_after = []
    download(site.address + "/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY
    assert site.requests[-1][1] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(site, tmp_path):
    site.files["/a"] = BODY
    site.cut_after = [300_000, 0, 0, 0]
    with pytest.raises(HostError):
        download(site.address + "/a", tmp_path / "a", pause=0)
    site.cut_after, site.etag = [], '"two"'
    site.files["/a"] = BODY[::-1]
    download(site.address + "/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_everything_again(site, tmp_path):
    site.files["/a"] = BODY
    site.ignore_ranges = True
    site.cut_after = [300_000]
    download(site.address + "/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_server_that_sends_another_part_is_refused(site, tmp_path):
    site.files["/a"] = BODY
    site.lie_about_range = True
    site.cut_after = [300_000]
    with pytest.raises(ProtocolError, match="another part"):
        download(site.address + "/a", tmp_path / "a", pause=0)


def test_a_body_shorter_than_promised_is_a_cut_and_not_a_file(site, tmp_path):
    site.files["/a"] = BODY
    site.claim = len(BODY) + 1000
    site.ignore_ranges = True
    with pytest.raises(HostError, match="cut off"):
        download(site.address + "/a", tmp_path / "a", pause=0)


def test_a_length_beyond_the_free_space_is_refused_before_any_byte(site, tmp_path):
    site.files["/a"] = BODY
    site.claim = 1 << 50
    with pytest.raises(NoSpaceError, match="free"):
        download(site.address + "/a", tmp_path / "a", limit=1 << 60)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("endless", [True, False], ids=["endless", "long"])
def test_a_body_without_end_stops_at_the_limit(site, tmp_path, endless):
    site.files["/a"] = BODY
    site.endless, site.no_length = endless, True
    with pytest.raises(ProtocolError, match="more than 512K"):
        download(site.address + "/a", tmp_path / "a", limit=512 << 10)
    assert (tmp_path / "a").stat().st_size <= 512 << 10


def test_an_absurd_length_is_refused(site, tmp_path):
    site.files["/a"] = BODY
    site.claim = 10**30
    with pytest.raises(ProtocolError, match="impossible length"):
        download(site.address + "/a", tmp_path / "a")


def test_a_missing_file_is_named(site, tmp_path):
    with pytest.raises(NotFound, match="does not exist"):
        download(site.address + "/nothing", tmp_path / "a")


def test_redirects_are_followed_but_not_for_ever(site, tmp_path):
    site.files["/a"] = BODY
    site.redirects = {"/b": "/a", "/loop": "/loop"}
    download(site.address + "/b", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    with pytest.raises(ProtocolError, match="redirected"):
        download(site.address + "/loop", tmp_path / "b")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_out_of_the_web_are_refused(site, tmp_path, target):
    site.redirects = {"/b": target}
    with pytest.raises((ProtocolError, HostError)):
        download(site.address + "/b", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nobody_listening_is_one_clear_line(site, tmp_path):
    with pytest.raises(HostError, match="cannot be reached: Connection refused"):
        download("http://127.0.0.1:1/a", tmp_path / "a")


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not an http"):
        download("file:///etc/passwd", tmp_path / "a")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subprocess.run(
        [*command.split(), "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory


def test_https_with_a_known_authority_works_and_an_unknown_one_is_refused(certificate, tmp_path):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
    web = sys.modules["web"]
    with web.serve(server) as site:
        site.files["/a"] = BODY
        download(site.address + "/a", tmp_path / "a", tls=trusting)
        with pytest.raises(HostError, match="certificate is not trusted"):
            download(site.address + "/a", tmp_path / "b")
        site.redirects = {"/down": "http://127.0.0.1:1/a"}
        with pytest.raises(ProtocolError, match="redirected"):
            download(site.address + "/down", tmp_path / "c", tls=trusting)
    assert (tmp_path / "a").read_bytes() == BODY
