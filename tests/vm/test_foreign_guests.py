"""Guests that wirt did not build: a CD, and a disk that boots by UEFI."""

from __future__ import annotations

import struct
import time
import zlib

import pytest

from wirt.vm.create import Wish, create
from wirt.vm.screen import screenshot
from wirt.vm.source import CdFile, DiskFile
from wirt.vm.start import start
from wirt.vm.vm import Vm

pytestmark = [pytest.mark.needs_qemu]

GRUB_CD = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"


def rows_of(png):
    """Return the rows of a PNG with 8-bit RGB pixels, filter by filter (RFC 2083)."""
    width, height = struct.unpack_from(">II", png, 16)
    assert png[24:26] == b"\x08\x02"
    position, packed = 8, b""
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        if kind == b"IDAT":
            packed += png[position + 8 : position + 8 + length]
        position += 12 + length
    data, stride = zlib.decompress(packed), width * 3
    before = bytearray(stride)
    for y in range(height):
        method, *line = data[y * (stride + 1) : (y + 1) * (stride + 1)]
        row = bytearray(line)
        for x in range(stride):
            left = row[x - 3] if x >= 3 else 0
            corner = before[x - 3] if x >= 3 else 0
            row[x] = (row[x] + _predicted(method, left, before[x], corner)) & 0xFF
        yield row
        before = row


def _predicted(method, left, up, corner):
    if method == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))
    return (0, left, up, (left + up) // 2)[method]


def bars(png, width):
    """Count the rows that have a run of ``width`` lit pixels: a menu's highlighted line."""
    return sum(1 for row in rows_of(png) if b"\x01" * width in _lit(row))


def _lit(row):
    return bytes(int(row[x] + row[x + 1] + row[x + 2] > 300) for x in range(0, len(row), 3))


def test_a_cd_reaches_its_menu(context, tmp_path):
    wish = Wish(settings={"memory": "128M"}, disk_size=1 << 20)
    create(context, "cd", CdFile(GRUB_CD), wish)
    start(context, "cd")
    picture = tmp_path / "screen.png"
    deadline = time.monotonic() + 600
    while True:
        screenshot(context, "cd", str(picture))
        if bars(picture.read_bytes(), 600) >= 10:  # one line of 16 pixels, as wide as the menu
            return
        assert time.monotonic() < deadline, "no menu on the screen"
        time.sleep(1)


@pytest.mark.needs_guest
@pytest.mark.xdist_group("guest")
def test_a_disk_boots_by_uefi_with_variables_of_its_own(context, uefi_disk):
    source = DiskFile(str(uefi_disk), "raw", uefi_disk.stat().st_size)
    settings = {"memory": "768M", "firmware": {"type": "uefi"}}
    create(context, "efi", source, Wish(settings=settings))
    before = uefi_disk.stat().st_mtime_ns
    start(context, "efi")
    vm = Vm("efi", context)
    assert vm.wait(timeout=1500) == "agent"
    assert vm.exec(["ls", "-d", "/sys/firmware/efi"]).text == "/sys/firmware/efi\n"
    done = vm.exec(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"in", check=False)
    assert (done.stdout, done.stderr, done.exit_code) == (b"in", b"err\n", 3)
    assert vm.stop(timeout=120)
    assert uefi_disk.stat().st_mtime_ns == before
