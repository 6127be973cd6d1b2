"""Forks of guests that wirt did not build, while they run: by BIOS, and by UEFI with a TPM.

Firmware, GRUB, kernel, initrd and root file system are Debian's; the first process is a shell on
the serial port. Neither wirt's helper nor the guest agent runs in them.
"""

from __future__ import annotations

import time

import pytest

from wirt.store.record import read_record
from wirt.vm.create import Wish, create
from wirt.vm.forking.fork import fork
from wirt.vm.screen import screenshot
from wirt.vm.source import DiskFile
from wirt.vm.start import start

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_guest,
    pytest.mark.xdist_group("foreign"),
]

COUNTER = (
    "i=0; while :; do i=$((i+1)); read who </who; echo $i >>/counter; echo $who $i >/dev/tty1; "
    "sleep 0.3; done"
)
UNCHANGED = ("the clock", "random numbers", "host name", "machine-id")
INDEX = 0x01500001


class Family:
    """A machine with a running counter, and its forks: shells by name."""

    def __init__(self, context, guests) -> None:
        self.context = context
        self._guests = guests
        self.shells = {}

    def shell(self, name, *, booted=True):
        if name in self.shells:
            self.shells[name].close()
        console = self._guests["tiny"].console(self.context.home.vm(name))
        self.shells[name] = self._guests["rescue"].RescueShell(console)
        if not booted:
            self.shells[name].await_prompt()
        return self.shells[name]

    def boot(self, disk, **settings):
        source = DiskFile(str(disk), "raw", disk.stat().st_size)
        create(self.context, "src", source, Wish(settings={"memory": "512M", **settings}))
        start(self.context, "src")
        shell = self.shell("src", booted=False)
        shell("echo nobody >/who")
        shell(f"sh -c '{COUNTER}' >/dev/null 2>&1 </dev/null &")
        shell("until [ -s /counter ]; do sleep 0.3; done")
        return shell

    def fork(self, *names, **options):
        made = fork(self.context, "src", names, **options)
        for name in ("src", *names):
            self.shell(name)
        return made

    def each(self, script):
        return {name: shell(script) for name, shell in self.shells.items()}

    def counted(self):
        said = self.each("cat /counter")
        return {name: [int(line) for line in text.split()] for name, text in said.items()}

    def close(self) -> None:
        for shell in self.shells.values():
            shell.close()


@pytest.fixture
def family(context, guests):
    made = Family(context, guests)
    yield made
    made.close()


def go_on_from(family, past):
    """All have the past, and count on by themselves."""
    first = family.counted()
    deadline = time.monotonic() + 600
    while True:
        now = family.counted()
        if all(len(now[name]) > len(first[name]) for name in now):
            break
        assert time.monotonic() < deadline, now
        time.sleep(0.5)
    for name, seen in now.items():
        assert seen == list(range(1, len(seen) + 1)), name
        assert len(seen) > past, name


def have_disks_of_their_own(family):
    for name, shell in family.shells.items():
        shell(f"yes {name} | head -c 2000000 >/blob; sync; echo 3 >/proc/sys/vm/drop_caches")
    for name, text in family.each("head -1 /blob; sort -u /blob | wc -l").items():
        assert text.split() == [name, "1"]


def have_screens_of_their_own(family, directory):
    """What one prints on its screen is not on the other's, and each goes on printing."""
    pictures = set()
    for name, shell in family.shells.items():
        shell(f"echo {name} >/who")
        for _ in range(2):
            await_two_more(family, name)
            path = directory / f"{name}.png"
            screenshot(family.context, name, str(path))
            pictures.add(path.read_bytes())
    assert len(pictures) == 2 * len(family.shells)


def await_two_more(family, name):
    """Wait until the counter of one machine has been printed twice more."""
    last = int(family.shells[name]("tail -n 1 /counter")) + 2
    family.shells[name](f"until [ $(tail -n 1 /counter) -ge {last} ]; do sleep 0.3; done")


def test_a_disk_that_boots_by_bios_is_forked_while_it_runs(family, bios_rescue_disk, tmp_path):
    before = bios_rescue_disk.stat().st_mtime_ns
    shell = family.boot(bios_rescue_disk)
    past = len(shell("cat /counter").split())
    made = family.fork("one", "two")
    assert made.method == "freeze"
    for one in made.forks:
        assert (one.identity.by, one.identity.unchanged) == ("", UNCHANGED)
    go_on_from(family, past)
    have_disks_of_their_own(family)
    have_screens_of_their_own(family, tmp_path)
    uuids = set(family.each("cat /proc/sys/kernel/random/uuid").values())
    assert len(uuids) == 3, "vmgenid tells this kernel that it was forked"
    assert bios_rescue_disk.stat().st_mtime_ns == before


@pytest.mark.needs_tool("swtpm")
def test_a_disk_that_boots_by_uefi_with_a_tpm_is_forked_while_it_runs(
    family, uefi_rescue_disk, guests
):
    tpm2 = guests["tpm2"]
    shell = family.boot(uefi_rescue_disk, firmware={"type": "uefi"}, tpm={"version": "2.0"})
    shell("modprobe efivarfs; mount -t efivarfs none /sys/firmware/efi/efivars")
    tpm2.answer(shell(tpm2.shell_line(tpm2.define(INDEX, 8))))
    tpm2.answer(shell(tpm2.shell_line(tpm2.write(INDEX, b"original"))))
    measured = shell(tpm2.shell_line(tpm2.read_pcr(0)))
    assert tpm2.pcr_of(measured) != "00" * 32, "the firmware has measured itself"
    past = len(shell("cat /counter").split())
    made = family.fork("one")
    assert [one.identity.unchanged for one in made.forks] == [(*UNCHANGED, "keys of the TPM")]
    for name, said in family.each(tpm2.shell_line(tpm2.read_pcr(0))).items():
        assert tpm2.pcr_of(said) == tpm2.pcr_of(measured), name
    go_on_from(family, past)
    have_disks_of_their_own(family)
    for name, own in family.shells.items():
        assert tpm2.stored(own(tpm2.shell_line(tpm2.read(INDEX, 8)))) == b"original", name
        tpm2.answer(own(tpm2.shell_line(tpm2.write(INDEX, name.encode().ljust(8)))))
        own(variable_line(name))
    for name, own in family.shells.items():
        kept = tpm2.stored(own(tpm2.shell_line(tpm2.read(INDEX, 8))))
        assert kept.decode().strip() == name
        assert own("ls /sys/firmware/efi/efivars | grep ^Of").split() == [variable(name)]
        stored = variables_of(family, name)
        assert [other for other in family.shells if f"Of{other}".encode("utf-16-le") in stored] == [
            name
        ]
    runs = [read_record(family.context.home.vm(name).record).run for name in family.shells]
    assert len({run.tpm_pid for run in runs}) == 2


def variable(name):
    return f"Of{name}-5d6a2a9e-1f0b-4a5e-9c59-0a2f5a3c7b11"


def variable_line(name):
    """Write a UEFI variable: four bytes of attributes, then the value, in one write."""
    path = f"/sys/firmware/efi/efivars/{variable(name)}"
    text = f"\\007\\000\\000\\000{name}"
    return f"printf '{text}' >/dev/variable; dd if=/dev/variable of={path} bs=99 2>/dev/null"


def variables_of(family, name):
    with open(family.context.home.vm(name).uefi_variables, "rb") as file:
        return file.read()
