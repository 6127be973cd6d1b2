"""A guest's tree of files, made by mmdebstrap."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from wirt.catalog import child
from wirt.catalog.namespace import enter_command
from wirt.catalog.recipe import Recipe, suite
from wirt.catalog.sources import Archive, archive, proxies
from wirt.errors import HostError, MissingDependency
from wirt.host.process import find_program

PACKAGES = (
    "busybox-static",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "less",
    "libpam-systemd",
    "login",
    "nano",
    "netbase",
    "openssh-server",
    "openssh-sftp-server",
    "passwd",
    "procps",
    "qemu-guest-agent",
    "systemd-sysv",
    "udev",
)
_KERNEL = {"debian": "linux-image-amd64", "ubuntu": "linux-image-generic"}
_NO_FILES = ("/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")
_HOOKS = (
    'chroot "$1" tar --extract --keep-directory-symlink --numeric-owner -C / <"$WIRT_OVERLAY"',
    'chroot "$1" sh -s <"$WIRT_SETUP"',
)
_STEPS = (
    (re.compile(r"I: running apt-get update"), "reading package lists"),
    (re.compile(r"I: downloading packages"), "downloading packages"),
    (re.compile(r"I: extracting archives"), "unpacking the base system"),
    (re.compile(r"I: installing essential"), "installing the base system"),
    (re.compile(r"I: installing remaining"), "installing kernel and services"),
    (re.compile(r"I: cleaning"), "cleaning up"),
)
_UNREACHABLE = re.compile(
    r"Could not (resolve|connect)|Temporary failure resolving|Failed to fetch|Connection "
    r"(refused|timed out)|Unable to connect|does not have a Release file|404 +Not Found"
)
_UNKNOWN_PACKAGE = re.compile(r"E: Unable to locate package (\S+)")
_UNSIGNED = re.compile(r"NO_PUBKEY|is not signed|EXPKEYSIG|BADSIG")


def make_tree(
    recipe: Recipe, *, tree: Path, overlay: Path, setup: Path, step: Callable[[str], None]
) -> None:
    """Install the recipe's packages into ``tree`` and apply ``overlay`` and ``setup``.

    Files of guest root belong to the caller. Raises MissingDependency, HostError (with the
    last lines of the log) and NoSpace.
    """
    family, codename = suite(recipe.distribution)
    chosen = archive(family, codename, mirror=recipe.mirror)
    if not chosen.keyring.exists():
        raise MissingDependency(
            f"the keys of {family}'s archive are not installed",
            hint=f"apt install {chosen.keyring.stem.removesuffix('-archive-keyring')}-"
            + ("archive-keyring" if family == "debian" else "keyring"),
        )
    try:
        child.run(
            _command(recipe, tree, chosen),
            what="building the guest's files",
            environment=_environment(overlay, setup),
            line=_reporter(step),
        )
    except HostError as error:
        raise _explained(error, chosen) from error


def _command(recipe: Recipe, tree: Path, chosen: Archive) -> list[str]:
    family, codename = suite(recipe.distribution)
    packages = [*PACKAGES, _KERNEL[family], *(("sudo",) if recipe.user else ()), *recipe.packages]
    command = [
        *enter_command(),
        find_program("mmdebstrap"),
        "--mode=root",
        "--variant=apt",
        "--format=dir",
    ]
    command += ["--include", ",".join(packages), f"--keyring={chosen.keyring}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NO_FILES]
    command.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    command.append('--aptopt=Acquire::Languages "none"')
    command += [f"--customize-hook={hook}" for hook in _HOOKS]
    return [*command, codename, os.fspath(tree), *chosen.lines]


def _environment(overlay: Path, setup: Path) -> dict[str, str]:
    return {
        **proxies(),
        "WIRT_OVERLAY": os.fspath(overlay),
        "WIRT_SETUP": os.fspath(setup),
        "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "DEBIAN_FRONTEND": "noninteractive",
        # Debian's kernel package then makes no initrd: ours takes its place.
        "INITRD": "No",
    }


def _reporter(step: Callable[[str], None]) -> Callable[[str], None]:
    def report(line: str) -> None:
        for pattern, text in _STEPS:
            if pattern.match(line):
                step(text)

    return report


def _explained(error: HostError, chosen: Archive) -> HostError:
    """Return a clearer error where the log's last lines tell the cause."""
    address = chosen.lines[0].split()[1] if chosen.lines else "the distribution's archive"
    unknown = _UNKNOWN_PACKAGE.search(error.message)
    if unknown:
        return HostError(f"{address} has no package {unknown[1]!r}", hint="check --package")
    if _UNSIGNED.search(error.message):
        return HostError(
            f"{address} is not signed by a key this host knows\n{_details(error)}",
            hint=f"update the keyring {chosen.keyring}",
        )
    if _UNREACHABLE.search(error.message):
        return HostError(
            f"the package archive {address} cannot be reached\n{_details(error)}",
            hint="check the network and the proxy of apt, or name another one: --mirror URL",
        )
    return error


def _details(error: HostError) -> str:
    return error.message.partition("\n")[2]
