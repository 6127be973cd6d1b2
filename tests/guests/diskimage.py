"""Test material: a Debian that boots from its own disk, as published cloud images do.

``make_disk_image(path, firmware="bios" | "uefi")`` needs no root where wirt's own builder
needs none. The disk has a GPT (UEFI specification, chapter 5) with

1. a BIOS boot partition that holds GRUB's core (BIOS only),
2. an EFI system partition with GRUB as /EFI/BOOT/BOOTX64.EFI (UEFI only),
3. the root file system, ext4.

Packages on the host: mmdebstrap fdisk mtools dosfstools grub-common grub-pc-bin
grub-efi-amd64-bin. As a program: ``diskimage.py PATH bios|uefi [--cloud-init]``.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from wirt.catalog import child
from wirt.catalog.catalog import remove_tree
from wirt.catalog.namespace import enter_command
from wirt.catalog.sources import archive
from wirt.errors import MissingDependency
from wirt.host.process import find_program

SECTOR = 512
MIB = 1 << 20
BIOS_START, ESP_START, ROOT_START = 1 * MIB, 2 * MIB, 66 * MIB
ROOT_LABEL = "testroot"
GRUB = Path("/usr/lib/grub")
PACKAGES = ("linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "zstd",
            "qemu-guest-agent", "openssh-server", "iproute2", "libpam-systemd", "sudo")  # fmt: skip
CLOUD_PACKAGES = ("cloud-init", "cloud-guest-utils", "netplan.io", "locales")
# Small, so that it unpacks quickly under TCG: the drivers of QEMU's disks and nothing else.
SETUP = """set -eu
cat >/etc/initramfs-tools/initramfs.conf <<END
MODULES=list
BUSYBOX=auto
COMPRESS=zstd
COMPRESSLEVEL=1
RUNSIZE=10%
FSTYPE=ext4
END
printf '%s\\n' virtio_pci virtio_blk virtio_scsi ahci ata_piix sd_mod ext4 crc32c_generic \\
    >>/etc/initramfs-tools/modules
version=$(basename /lib/modules/*)
update-initramfs -c -k "$version"
ln -sf "boot/vmlinuz-$version" /vmlinuz
ln -sf "boot/initrd.img-$version" /initrd.img
echo 'LABEL=testroot / ext4 defaults 0 1' >/etc/fstab
echo stand-in >/etc/hostname
printf '[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n' >/etc/systemd/network/80-dhcp.network
systemctl --quiet enable systemd-networkd.service
[ ! -d /etc/cloud ] || echo 'locale: C.UTF-8' >/etc/cloud/cloud.cfg.d/99-test.cfg
systemctl --quiet mask systemd-networkd-wait-online.service
: >/etc/machine-id
"""
GRUB_CONFIG = f"""search --no-floppy --set=root --label {ROOT_LABEL}
linux /vmlinuz root=LABEL={ROOT_LABEL} rw console=tty0 console=ttyS0 no_timer_check quiet
initrd /initrd.img
boot
"""
SHELL_CONFIG = f"""search --no-floppy --set=root --label {ROOT_LABEL}
linux /vmlinuz wirt.shell console=ttyS0 no_timer_check quiet
initrd /initrd.img
boot
"""
MODULES = ("part_gpt", "ext2", "linux", "normal", "search", "search_label", "boot", "echo")


def make_disk_image(
    path: Path, firmware: str, *, cloud_init: bool = False, size: int = 3 << 30
) -> Path:
    """Write a raw disk image to ``path``; raises MissingDependency for what is not installed."""
    platform = "i386-pc" if firmware == "bios" else "x86_64-efi"
    if not (GRUB / platform).is_dir():
        package = "grub-pc-bin" if firmware == "bios" else "grub-efi-amd64-bin"
        raise MissingDependency(f"GRUB for {firmware} is missing", hint=f"apt install {package}")
    for program in ("mmdebstrap", "mke2fs", "sfdisk", "mcopy", "mformat", "grub-mkimage"):
        find_program(program)
    work = Path(tempfile.mkdtemp(prefix=".disk-", dir=path.parent))
    try:
        disk = work / "disk"
        _partition(disk, size, firmware)
        _fill_root(disk, work, size, CLOUD_PACKAGES if cloud_init else ())
        (_install_bios if firmware == "bios" else _install_uefi)(disk, work)
        disk.rename(path)
    finally:
        remove_tree(work)
    return path


def make_shell_disk(path: Path, bios_disk: Path, initrd: Path, *, size: int = 128 << 20) -> Path:
    """Write a disk whose BIOS boot ends in a shell on the first serial port, in seconds.

    The kernel is that of ``bios_disk`` (those of wirt's images are not for a boot loader),
    ``initrd`` that of an image that wirt built: its busybox is the guest.
    """
    work = Path(tempfile.mkdtemp(prefix=".disk-", dir=path.parent))
    try:
        disk, tree = work / "disk", work / "tree"
        _partition(disk, size, "bios")
        tree.mkdir()
        link = f"{bios_disk}?offset={ROOT_START}"
        listing = "/".join(child.run(["debugfs", "-R", "ls -p /boot", link], what="debugfs"))
        name = next(part for part in listing.split("/") if part.startswith("vmlinuz-"))
        dump = f"dump /boot/{name} {tree / 'vmlinuz'}"
        child.run(["debugfs", "-R", dump, link], what="debugfs")
        (tree / "initrd.img").write_bytes(gzip.compress(initrd.read_bytes(), 1))
        _make_file_system(disk, tree, size)
        _install_bios(disk, work, SHELL_CONFIG)
        disk.rename(path)
    finally:
        remove_tree(work)
    return path


def _partition(disk: Path, size: int, firmware: str) -> None:
    with disk.open("xb") as file:
        file.truncate(size)
    lines = ["label: gpt"]
    if firmware == "bios":
        lines.append(f"start={BIOS_START // SECTOR}, size={MIB // SECTOR}, "
                     "type=21686148-6449-6E6F-744E-656564454649")  # fmt: skip
    else:
        lines.append(f"start={ESP_START // SECTOR}, size={64 * MIB // SECTOR}, type=U")
    lines.append(f"start={ROOT_START // SECTOR}, type=L")
    script = disk.with_name("table")
    script.write_text("\n".join([*lines, ""]))
    shell = '"$1" --quiet --no-reread --no-tell-kernel "$2" <"$3"'
    child.run(
        ["sh", "-c", shell, "sh", find_program("sfdisk"), str(disk), str(script)], what="sfdisk"
    )


def _fill_root(disk: Path, work: Path, size: int, extra: tuple[str, ...]) -> None:
    setup, tree = work / "setup.sh", work / "tree"
    setup.write_text(SETUP)
    source = archive("debian", "bookworm")
    command = [*enter_command(), "mmdebstrap", "--mode=root", "--variant=apt", "--format=dir"]
    command += ["--include", ",".join((*PACKAGES, *extra)), f"--keyring={source.keyring}"]
    command += ['--customize-hook=chroot "$1" sh -s <"$WIRT_SETUP"']
    environment = {"WIRT_SETUP": str(setup), "INITRD": "No", "DEBIAN_FRONTEND": "noninteractive",
                   "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}  # fmt: skip
    child.run(
        [*command, "bookworm", str(tree), *source.lines], what="mmdebstrap", environment=environment
    )
    _make_file_system(disk, tree, size)
    remove_tree(tree)


def _make_file_system(disk: Path, tree: Path, size: int) -> None:
    root_kib = (size - ROOT_START - MIB) // 1024
    child.run(
        [*enter_command(), find_program("mke2fs"), "-q", "-t", "ext4", "-L", ROOT_LABEL,
         "-E", f"offset={ROOT_START},lazy_itable_init=1", "-d", str(tree), str(disk),
         f"{root_kib}k"],
        what="mke2fs",
    )  # fmt: skip


def _install_bios(disk: Path, work: Path, menu: str = GRUB_CONFIG) -> None:
    """Do what grub-bios-setup does, which insists on a block device and on root.

    boot.img is the boot sector: the core's first sector stands at 0x5c. The core starts with
    diskboot.img, whose last 12 bytes before 0x200 say where the rest of the core is: first
    sector (8 bytes), number of sectors (2), segment to load it to (2).
    """
    config, core_file = work / "grub.cfg", work / "core.img"
    config.write_text(menu)
    child.run(
        ["grub-mkimage", "-O", "i386-pc", "-o", str(core_file), "-c", str(config),
         "-p", "/boot/grub", "biosdisk", "serial", *MODULES],
        what="grub-mkimage",
    )  # fmt: skip
    core = bytearray(core_file.read_bytes())
    core += bytes(-len(core) % SECTOR)
    first = BIOS_START // SECTOR
    struct.pack_into("<QHH", core, 0x1F4, first + 1, len(core) // SECTOR - 1, 0x820)
    boot = bytearray((GRUB / "i386-pc/boot.img").read_bytes()[:440])
    struct.pack_into("<Q", boot, 0x5C, first)
    boot[0x64] = 0xFF
    boot[0x66:0x68] = b"\x90\x90"
    with disk.open("r+b") as file:
        file.write(boot)
        file.seek(BIOS_START)
        file.write(core)


def _install_uefi(disk: Path, work: Path) -> None:
    config, loader, esp = work / "grub.cfg", work / "BOOTX64.EFI", work / "esp"
    config.write_text(GRUB_CONFIG)
    child.run(
        ["grub-mkimage", "-O", "x86_64-efi", "-o", str(loader), "-c", str(config),
         "-p", "/EFI/BOOT", *MODULES],
        what="grub-mkimage",
    )  # fmt: skip
    with esp.open("wb") as file:
        file.truncate(64 * MIB)
    child.run(["mformat", "-i", str(esp), "-F", "-v", "ESP", "::"], what="mformat")
    child.run(["mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT"], what="mmd")
    child.run(["mcopy", "-i", str(esp), str(loader), "::/EFI/BOOT/BOOTX64.EFI"], what="mcopy")
    with disk.open("r+b") as file, esp.open("rb") as source:
        file.seek(ESP_START)
        shutil.copyfileobj(source, file)


if __name__ == "__main__":
    make_disk_image(Path(sys.argv[1]), sys.argv[2], cloud_init="--cloud-init" in sys.argv)
