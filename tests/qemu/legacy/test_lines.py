"""Lines that people published between 2007 and 2014, on the QEMU that is installed."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.qemu import machines
from tests.qemu.legacy import lines
from wirt.qemu.legacy.translate import todays_line
from wirt.qemu.runtime import Runtime

PUBLISHED = lines.published()
IDS = [
    f"{number}-{'-'.join(words[:3])}"[:40].replace("/", "_")
    for number, words in enumerate(PUBLISHED)
]

REFUSED = {
    "-device virtio-net-pci,netdev=net0": "two cards at the network net0",
    "-hda sheepdog:Alice": "Sheepdog was dropped",
    "-drive file=C:\\Program Files (x86)\\QemuManager\\images\\Test.qcow2": "a path of Windows",
    "-net vde,vlan=0": "the switch /var/run/vde.ctl is not on this host",
    "-net vde,vlan=1": "is not on this host",
    "-vnc localhost:1,sasl,tls,x509": "the certificate /etc/pki/qemu/ca-cert.pem is not on",
    "-usbdevice host:5.7": "the USB device /dev/bus/usb/005/007 is not on this host",
    "-device pci-assign,host=08:10.0": "this host has no PCI device 0000:08:10.0",
    "-device pci-assign,host=01:00.1": "this host has no PCI device 0000:01:00.1",
}
"""Beginning of the option → part of the reason. Nothing else may be refused."""

NO_SERVER = {
    "nbd:my_nbd_server.mydomain.org:1024": "address resolution failed",
    "http://host/path/my.iso": "'http'|resolve host|module curl",
}
"""Servers that were somebody's: QEMU itself says that they are not there."""


def test_the_published_lines_are_here():
    if not PUBLISHED:
        pytest.skip("no shared/data/lines/old-lines.jsonl beside the repository")
    assert len(PUBLISHED) == 91


@pytest.mark.needs_qemu
@pytest.mark.parametrize("words", PUBLISHED, ids=IDS)
def test_a_published_line_starts_or_is_refused_for_a_true_reason(words, qemu):
    binary, capabilities = qemu
    base = Path(tempfile.mkdtemp(prefix="wirt-l"))
    try:
        host = lines.Host(base)
        translation = lines.translated(words, host, capabilities)
        if translation.refused:
            check_refusals(translation)
        elif translation.query:
            assert translation.query == ("-nic", "model=help")
        else:
            line = lines.line_for(translation, base, capabilities, binary)
            host.furnish(translation.machine, line)
            start(line, base)
    finally:
        shutil.rmtree(base)


def check_refusals(translation):
    for note in translation.refused:
        if note.option in {"qemu-img", "kvm-img"}:
            continue
        said = f"{note.option} {note.value}"
        known = [reason for start, reason in REFUSED.items() if said.startswith(start)]
        assert known, f"{said}: {note.why}"
        assert any(reason in note.why for reason in known), note.why


def start(line, base):
    absent = [reason for server, reason in NO_SERVER.items() if server in " ".join(line)]
    if absent:
        with pytest.raises(AssertionError, match=absent[0]), lines.started(line, base):
            pass
        return
    with lines.started(line, base) as qmp:
        status = qmp.execute("query-status", reply=dict)["status"]
        assert status in {"prelaunch", "inmigrate", "paused"}


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_no_form_that_was_removed_is_emitted(version, tmp_path):
    capabilities = machines.recorded(version)
    host = lines.Host(tmp_path)
    for words in PUBLISHED:
        translation = lines.translated(words, host, capabilities)
        if translation.machine is None:
            continue
        line = todays_line(translation, RUNTIME, capabilities, "qemu-system-x86_64")
        assert not set(line) & GONE[version], words
        for word in line:
            assert not any(form in word for form in OLD_FORMS), word


RUNTIME = Runtime(
    "tcg", "/here", str, overlays={n: f"/o{n}" for n in range(9)}, attended=True, sandbox=False
)
OLD_FORMS = ("vlan=", "reconnect=", ",boot=on", "if=scsi", "nowait", ",server,")
GONE = {
    "7.2": {
        "-no-kvm", "-no-kvm-irqchip", "-no-kvm-pit", "-no-kvm-pit-reinjection", "-tdf",
        "-localtime", "-startdate", "-rtc-td-hack", "-redir", "-tftp", "-bootp", "-smb",
        "-soundhw", "-balloon",
        "-watchdog", "-sdl", "-curses", "-alt-grab", "-ctrl-grab", "-no-frame", "-no-quit",
        "-clock", "-pcidevice", "-hdachs", "-std-vga", "-nodefconfig", "-virtioconsole",
        "-tb-size", "-realtime", "-net",
    },
}  # fmt: skip
GONE["10.0"] = GONE["7.2"] | {
    "-no-acpi", "-no-hpet", "-portrait", "-rotate", "-chroot", "-singlestep", "-async-teardown",
    "-runas",
}  # fmt: skip
