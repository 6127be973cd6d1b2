"""What a built guest image is made from, and the fingerprint that says two are equal."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import msgspec

from wirt.errors import HostError, UsageError
from wirt.units import GIB, MIB

# The modules that decide what becomes of a recipe: a change there makes another guest.
_BUILDER = ("disk.py", "initrd.py", "kernel.py", "overlay.py", "rootfs.py")

DEBIAN = {"11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}
UBUNTU = {"20.04": "focal", "22.04": "jammy", "24.04": "noble", "25.10": "questing"}
_RELEASES = {"debian": DEBIAN, "ubuntu": UBUNTU}
_CODENAME = re.compile(r"[a-z][a-z0-9-]{1,30}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_MAX_COPY = 256 * MIB
MIN_SIZE = GIB
DEFAULT_SIZE = 8 * GIB


class FileCopy(msgspec.Struct, frozen=True):
    """A file of the host to put into the guest, owned by root."""

    source: Path
    target: str
    """Absolute path in the guest."""
    mode: int = 0o644


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what is in a built image."""

    distribution: str = "debian:12"
    """``debian:12``, ``debian:bookworm``, ``debian:sid``, ``ubuntu:24.04`` …"""
    packages: tuple[str, ...] = ()
    """Packages beyond those every guest gets."""
    size: int = DEFAULT_SIZE
    """Virtual size of the disk in bytes; the file is sparse."""
    user: str = "user"
    """Account for people, without password, with sudo; empty: only root."""
    ssh_keys: tuple[str, ...] = ()
    """Public keys that may log in as root and as ``user``."""
    files: tuple[FileCopy, ...] = ()
    hostname: str = "guest"
    kernel_arguments: tuple[str, ...] = ()
    autologin: bool = True
    """Whether the serial console is root's without a password."""
    mirror: str = ""
    """Address of the archive; empty: the one this host uses, else the distribution's."""

    def check(self) -> None:
        """Raise UsageError for values that cannot be built."""
        suite(self.distribution)
        for name in self.packages:
            _match(_PACKAGE, name, "package name")
        _match(_HOST, self.hostname, "host name")
        if self.user:
            _match(_USER, self.user, "user name")
        if self.user == "root":
            raise UsageError("root exists already", hint="name another user, or none")
        if self.size < MIN_SIZE or self.size % MIB:
            raise UsageError("the disk needs at least 1 GiB, in whole MiB", hint="size 8G")
        for key in self.ssh_keys:
            if "\n" in key.strip() or not key.strip().startswith(("ssh-", "ecdsa-", "sk-")):
                raise UsageError(
                    f"not an SSH public key: {key[:40]!r}", hint="give the text of a .pub file"
                )
        if not all(re.fullmatch(r"[!-~]+", word) for word in self.kernel_arguments):
            raise UsageError("kernel arguments are printable words without spaces")
        if self.mirror and not re.fullmatch(r"(https?|ftp|file|copy)://?[!-~]+", self.mirror):
            raise UsageError(f"{self.mirror[:60]!r} is not an address of a package archive")
        for copy in self.files:
            _check_copy(copy)

    @property
    def name(self) -> str:
        """The distribution as given, in lower case: the image's name unless told otherwise."""
        return self.distribution.lower()

    def fingerprint(self) -> str:
        """Return 64 hex digits, equal for recipes that make the same guest.

        Contents of the files to copy, the builder itself and the guest's parts that come with
        wirt count as well. Raises HostError for files that cannot be read.
        """
        import hashlib

        family, codename = suite(self.distribution)
        plain = msgspec.structs.replace(self, distribution=f"{family}:{codename}", files=())
        digest = hashlib.sha256(b"wirt-recipe\0")
        digest.update(msgspec.json.encode(plain, order="deterministic"))
        for copy in self.files:
            content = hashlib.sha256(read_copy(copy)).hexdigest()
            digest.update(f"\0{copy.target}\0{copy.mode:o}\0{content}".encode())
        for name, data in {**guest_parts(), **_builder()}.items():
            digest.update(f"\0{name}\0".encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return the recipe in one line, defaults omitted."""
        words = [self.distribution]
        if self.packages:
            words.append(f"packages {' '.join(self.packages)}")
        if self.files:
            words.append(f"files {' '.join(copy.target for copy in self.files)}")
        if self.kernel_arguments:
            words.append(f"kernel arguments {' '.join(self.kernel_arguments)}")
        return "; ".join(words)


def suite(distribution: str) -> tuple[str, str]:
    """Return family and code name: ``debian:12`` → ``("debian", "bookworm")``.

    Raises UsageError for a family that mmdebstrap cannot make.
    """
    family, _, release = distribution.lower().partition(":")
    if family not in _RELEASES:
        raise UsageError(
            f"{distribution[:40]!r} cannot be built here",
            hint="debian:12, debian:13, debian:sid, ubuntu:24.04; or pull a published image",
        )
    codename = _RELEASES[family].get(
        release or {"debian": "12", "ubuntu": "24.04"}[family], release
    )
    if not _CODENAME.fullmatch(codename):
        known = ", ".join(_RELEASES[family])
        raise UsageError(f"{family} has no release {release[:40]!r}", hint=f"known: {known}")
    return family, codename


def guest_parts() -> dict[str, bytes]:
    """Return the files of ``wirt/catalog/guest`` by name."""
    directory = resources.files("wirt.catalog").joinpath("guest")
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(directory.iterdir(), key=lambda entry: entry.name)
        if entry.is_file() and not entry.name.endswith(".py")
    }


def _builder() -> dict[str, bytes]:
    directory = resources.files("wirt.catalog")
    return {name: directory.joinpath(name).read_bytes() for name in _BUILDER}


def read_copy(copy: FileCopy) -> bytes:
    """Return the content of a file to copy. Raises HostError, UsageError beyond 256 MiB."""
    try:
        with copy.source.open("rb") as file:
            data = file.read(_MAX_COPY + 1)
    except OSError as error:
        raise HostError(f"{copy.source}: {error.strerror}") from error
    if len(data) > _MAX_COPY:
        raise UsageError(
            f"{copy.source} is larger than 256 MiB", hint="attach it as a disk instead"
        )
    return data


def _check_copy(copy: FileCopy) -> None:
    parts = copy.target.split("/")
    if not copy.target.startswith("/") or ".." in parts or copy.target.endswith("/"):
        raise UsageError(
            f"{copy.target!r} is not an absolute path in the guest", hint="/etc/motd, for example"
        )
    if "\0" in copy.target or not 0 <= copy.mode <= 0o7777:
        raise UsageError(f"cannot copy to {copy.target!r}")


def _match(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise UsageError(f"{value[:40]!r} is not a {what}")
