from __future__ import annotations

import pytest

from wirt.catalog.sources import archive, host_sources, proxies

DEB822 = """\
# A comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /x

Types: deb
URIs: http://security.example/debian-security/
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] https://vendor.example/apt stable main
deb-src http://source.example/debian bookworm main
deb http://line.example/debian/ bookworm main contrib # comment
deb cdrom:[Debian]/ bookworm main
"""


@pytest.fixture
def apt(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_without_configuration_the_choice_is_left_to_mmdebstrap(apt):
    assert archive("debian", "bookworm", apt=apt).lines == ()
    named = archive("debian", "bookworm", mirror="http://mirror.example/debian", apt=apt)
    assert named.lines == ("deb http://mirror.example/debian bookworm main",)


def test_an_unstable_suite_has_neither_updates_nor_security(apt):
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert len(archive("debian", "sid", apt=apt).lines) == 1


def test_the_archive_of_the_host_is_used(apt):
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    lines = archive("debian", "trixie", apt=apt).lines
    assert lines == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://security.example/debian-security/ trixie-security main",
    )


def test_one_line_sources_are_read_and_vendors_left_out(apt):
    (apt / "sources.list").write_text(ONE_LINE)
    assert (
        archive("debian", "bookworm", apt=apt).lines[0].split()[1] == "http://line.example/debian/"
    )
    assert [source.address for source in host_sources(apt)] == [
        "https://vendor.example/apt",
        "http://line.example/debian/",
    ]


def test_a_named_mirror_replaces_the_archive(apt):
    lines = archive("debian", "bookworm", mirror="http://my.example/debian", apt=apt).lines
    assert lines == ("deb http://my.example/debian bookworm main",)


@pytest.mark.parametrize("text", ["deb", "deb [", "deb [x", "URIs", ": x", "\x00\xff", " lead"])
def test_odd_configuration_is_no_source(apt, text):
    (apt / "sources.list").write_text(text)
    (apt / "sources.list.d/x.sources").write_text(text)
    assert list(host_sources(apt)) == []


@pytest.mark.needs_tool("apt-config")
def test_the_proxy_of_the_hosts_apt_is_used(tmp_path, monkeypatch):
    config = tmp_path / "apt.conf"
    config.write_text(
        'Acquire::http::Proxy "http://proxy.example:3128/";\n'
        'Acquire::http::Proxy::own.example "DIRECT";\nAcquire::https::Proxy "DIRECT";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    assert proxies() == {"http_proxy": "http://proxy.example:3128/"}
