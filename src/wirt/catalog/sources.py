"""Where packages come from: the archive this host uses itself, else mmdebstrap's own choice.

A host that was told to use a mirror near it (or the only one its firewall lets through)
should not have to be told again for its guests. Both forms of apt's configuration are read:
one line for each source (sources.list(5)) and deb822 stanzas (``*.sources``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wirt.errors import MissingDependency
from wirt.host.process import run

_OPTIONS_END = "]"


class Source(NamedTuple):
    """One archive and suite that the host's apt uses."""

    address: str
    suite: str
    components: tuple[str, ...]


class Archive(NamedTuple):
    """What mmdebstrap is given: source lines (none: it knows an archive), and the keyring."""

    lines: tuple[str, ...]
    keyring: Path


_COMPONENTS = {"debian": "main", "ubuntu": "main universe"}
_KEYRING = {
    "debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}
_UNSTABLE = frozenset({"sid", "unstable", "testing", "experimental"})


def archive(family: str, codename: str, *, mirror: str = "", apt: Path | None = None) -> Archive:
    """Return the sources of ``codename``; ``mirror`` replaces the main archive.

    ``apt`` is the host's configuration, ``/etc/apt`` unless told otherwise.
    """
    main, security = _addresses(family, Path("/etc/apt") if apt is None else apt)
    components = _COMPONENTS[family]
    lines = []
    if mirror or main:
        lines.append(f"deb {mirror or main} {codename} {components}")
    if main and codename not in _UNSTABLE and not mirror:
        lines.append(f"deb {main} {codename}-updates {components}")
        if security:
            lines.append(f"deb {security} {codename}-security {components}")
    return Archive(tuple(lines), _KEYRING[family])


def _addresses(family: str, apt: Path) -> tuple[str, str]:
    """Return the main and the security archive as the host knows them, or ""."""
    main = security = ""
    for source in reversed(list(host_sources(apt))):
        path = source.address.rstrip("/").rpartition("/")[2]
        if "main" not in source.components:
            continue
        if source.suite.endswith("-security") and path in {f"{family}-security", family}:
            security = source.address
        elif path == family and "-" not in source.suite:
            main = source.address
    return main, security


def host_sources(apt: Path) -> Iterator[Source]:
    """Yield the binary sources of the configuration at ``apt``; unreadable files are none."""
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    for path in lists:
        for line in _read(path).splitlines():
            yield from _one_line(line)
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        for stanza in _stanzas(_read(path)):
            yield from _deb822(stanza)


def proxies() -> dict[str, str]:
    """Return the proxies of the host's apt as environment variables.

    As variables they reach the build's apt, but not the configuration inside the guest.
    """
    try:
        dump = run(["apt-config", "dump", "--no-empty", "--format=%f %v%n"], check=False).stdout
    except MissingDependency:
        return {}
    found = {}
    for line in dump.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        scheme = {"acquire::http::proxy": "http", "acquire::https::proxy": "https"}.get(key.lower())
        if scheme and "://" in value:
            found[f"{scheme}_proxy"] = value
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _one_line(line: str) -> Iterator[Source]:
    words = line.partition("#")[0].split()
    if not words or words[0] != "deb":
        return
    if len(words) > 1 and words[1].startswith("["):
        ends = [place for place, word in enumerate(words) if word.endswith(_OPTIONS_END)]
        words = ["deb", *words[ends[0] + 1 :]] if ends else []
    if len(words) >= 4 and words[1].startswith(("http://", "https://")):
        yield Source(words[1], words[2], tuple(words[3:]))


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += " " + line.strip()
        else:
            last, _, value = line.partition(":")
            last = last.strip().lower()
            fields[last] = value.strip()


def _deb822(fields: dict[str, str]) -> Iterator[Source]:
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
        return
    for address in fields.get("uris", "").split():
        if address.startswith(("http://", "https://")):
            for name in fields.get("suites", "").split():
                yield Source(address, name, tuple(fields.get("components", "").split()))
