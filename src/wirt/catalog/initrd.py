"""The initrd of built images: busybox, the storage modules of one kernel and one script.

A distribution's own initrd brings udev and twenty hook scripts; under TCG it takes longer
than the rest of the boot. Ours loads drivers by the modaliases of the buses, mounts the
root file system and hands over. It is not compressed: unpacking costs the guest more time
than copying a few MiB costs QEMU.

Layout: a cpio archive in the "newc" form (Linux Documentation/driver-api/early-userspace/
buffer-format.rst): for each entry a header of 110 ASCII characters (magic ``070701`` and
13 fields of 8 hexadecimal digits), the name with a closing NUL, padding to 4 bytes, the
content, padding to 4 bytes; the entry ``TRAILER!!!`` ends the archive.
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from wirt.errors import CorruptImage, HostError

# What can stand between the kernel and the root file system on any bus that QEMU offers.
# Names that a kernel lacks (built in, or renamed) are skipped.
WANTED_MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "ahci",
    "ata_piix",
    "sym53c8xx",
    "mptspi",
    "mptsas",
    "megaraid_sas",
    "vmw_pvscsi",
    "xhci_pci",
    "ehci_pci",
    "uhci_hcd",
    "usb_storage",
    "uas",
    "sd_mod",
    "crc32c_generic",
    "ext4",
)
_APPLETS = ("cat", "dd", "echo", "grep", "ln", "ls", "mkdir", "modprobe", "mount", "od", "sh",
            "sleep", "switch_root", "tr")  # fmt: skip
_MAX_MODULE = 64 << 20
_SUFFIX = re.compile(r"\.ko(\.(gz|xz|zst))?$")


def build_initrd(*, modules: Path, busybox: Path) -> bytes:
    """Return the initrd for the kernel whose ``/lib/modules/VERSION`` is at ``modules``.

    ``busybox`` must be statically linked. Raises HostError if the modules lack a way to
    reach a virtio disk, CorruptImage for a module that does not unpack.
    """
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "root", "run", "sys"):
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), mode=0o755)
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    archive.link("sbin", "bin")
    archive.file("init", _script(), mode=0o755)
    _add_modules(archive, modules)
    return archive.finish()


def _script() -> bytes:
    return resources.files("wirt.catalog").joinpath("guest/initrd-init").read_bytes()


def _add_modules(archive: Cpio, modules: Path) -> None:
    chosen = required_modules(modules, WANTED_MODULES)
    names = {module_name(path) for path in chosen}
    builtin = _read(modules / "modules.builtin")
    if "virtio_blk" not in names and "/virtio_blk.ko" not in builtin:
        raise HostError(f"the kernel {modules.name} has no driver for virtio disks")
    base = f"lib/modules/{modules.name}"
    dependencies = [f"{_plain(path)}: {' '.join(map(_plain, needs))}" for path, needs in
                    chosen.items()]  # fmt: skip
    archive.parents(f"{base}/modules.dep")
    archive.file(f"{base}/modules.dep", "\n".join([*dependencies, ""]).encode())
    archive.file(f"{base}/modules.alias", _aliases(modules, names).encode())
    for path in chosen:
        archive.parents(f"{base}/{_plain(path)}")
        archive.file(f"{base}/{_plain(path)}", _unpack(modules / path))


def required_modules(modules: Path, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return path → paths it depends on, for ``wanted`` and all they need.

    Paths are those of ``modules.dep``, relative to ``modules``; a dependency stands before
    what needs it.
    """
    table = dict(_dependencies(modules))
    by_name = {module_name(path): path for path in table}
    chosen: dict[str, list[str]] = {}
    for name in wanted:
        path = by_name.get(name)
        if path is None:
            continue
        for needed in reversed(table[path]):
            chosen.setdefault(needed, table.get(needed, []))
        chosen.setdefault(path, table[path])
    return chosen


def module_name(path: str) -> str:
    """Return the name the kernel gives the module file ``path``."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def _dependencies(modules: Path) -> Iterator[tuple[str, list[str]]]:
    for line in _read(modules / "modules.dep").splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            yield path, needs.split()


def _aliases(modules: Path, names: set[str]) -> str:
    kept = [
        line
        for line in _read(modules / "modules.alias").splitlines()
        if line.startswith("alias ") and line.rpartition(" ")[2].replace("-", "_") in names
    ]
    return "\n".join([*kept, ""])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _plain(path: str) -> str:
    return _SUFFIX.sub(".ko", path)


def _unpack(path: Path) -> bytes:
    """Return the module's ELF file: busybox cannot load the compressed ones of Debian 13."""
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.LZMADecompressor().decompress(data, _MAX_MODULE)
        if path.suffix == ".zst":
            import zstandard

            return zstandard.ZstdDecompressor().decompress(data, _MAX_MODULE)
        if path.suffix == ".gz":
            import zlib

            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _MAX_MODULE)
    except Exception as error:
        raise CorruptImage(f"the module does not unpack: {error}", path=str(path)) from error
    return data


class Cpio:
    """A cpio archive in memory; times and owners are zero, so equal content is equal bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._seen: set[str] = set()

    def directory(self, name: str) -> None:
        if name not in self._seen:
            self._seen.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def parents(self, name: str) -> None:
        """Add every directory above ``name``."""
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            self.directory("/".join(parts[:count]))

    def file(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _entry(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [_padded(header + raw), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
