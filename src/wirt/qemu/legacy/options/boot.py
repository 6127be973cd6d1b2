"""What the machine boots: order, kernel, BIOS and option ROMs."""

from __future__ import annotations

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import flag, keep, valued
from wirt.qemu.legacy.values import join, parse

_KINDS = {
    "a": "floppy", "b": "floppy", "c": "disk", "d": "cdrom",
    "n": "network", "o": "network", "p": "network",
}  # fmt: skip
_LONGEST_COMMAND = 2000


def boot(draft: Draft, given: Given) -> Outcome | None:
    """Order of devices, by letters."""
    values = parse(given.value, first="order")
    for key in ("order", "once"):
        letters = values.take(key)
        if letters:
            draft.boot[key] = _order(letters)
    if values.has("menu"):
        draft.boot["menu"] = values.flag("menu")
    values.take("strict")
    splash = [(key, text) for key, text in values if key in _SPLASH]
    unknown = [key for key, _ in values if key not in _SPLASH]
    if unknown:
        raise Refused(f"-boot never had {unknown[0][:30]}=", "order=, once=, menu=on")
    if splash:
        draft.args += ["-boot", join(splash)]
    return Outcome("same")


_SPLASH = ("splash", "splash-time", "reboot-timeout")


def _order(letters: str) -> list[str]:
    unknown = [letter for letter in letters if letter not in _KINDS]
    if unknown:
        raise Refused(
            f"{unknown[0]!r} is no drive to boot from",
            "a (floppy), c (disk), d (CD), n (network)",
        )
    return list(dict.fromkeys(_KINDS[letter] for letter in letters))


def kernel(draft: Draft, given: Given) -> Outcome | None:
    """A kernel of the host's."""
    draft.need(given.value, "the kernel")
    draft.boot["kernel"] = given.value
    return Outcome("same")


def initrd(draft: Draft, given: Given) -> Outcome | None:
    """Its initial RAM disk, or the modules of a multiboot kernel."""
    if "," not in given.value and " " not in given.value:
        draft.need(given.value, "the initrd")
    draft.boot["initrd"] = given.value
    return Outcome("same")


def append(draft: Draft, given: Given) -> Outcome | None:
    """Command line of the kernel."""
    if len(given.value) > _LONGEST_COMMAND:
        raise Refused(f"a kernel takes at most {_LONGEST_COMMAND} characters here")
    draft.boot["cmdline"] = given.value
    return Outcome("same")


def bios(draft: Draft, given: Given) -> Outcome | None:
    """BIOS in a file: of the user's, or one that QEMU finds in its own directories."""
    if not draft.facts.exists(given.value) and "/" not in given.value:
        return keep(draft, given)
    draft.need(given.value, "the BIOS")
    draft.firmware["code"] = given.value
    return Outcome("same")


def boot_check(draft: Draft, given: Given) -> Outcome | None:
    """A floppy boots without the signature of a boot sector."""
    if draft.capabilities.option_has("machine", "fd-bootchk"):
        draft.board_options["fd-bootchk"] = "off"
        return Outcome(today="-machine fd-bootchk=off")
    return keep(draft, given)


OPTIONS = (
    valued("boot", "0.8", "", "order of the drives to boot from", boot),
    valued("kernel", "0.8", "", "kernel to boot directly", kernel),
    valued("initrd", "0.8", "", "its initial RAM disk", initrd),
    valued("append", "0.8", "", "its command line", append),
    valued("dtb", "1.1", "", "device tree for the kernel", keep),
    valued("bios", "0.9", "", "BIOS file", bios),
    valued("option-rom", "kvm-17", "", "ROM that the BIOS runs", keep),
    flag("no-fd-bootchk", "0.8", "", "do not check a floppy's boot signature", boot_check),
    valued("fw_cfg", "2.4", "", "file for the guest's firmware", keep),
    valued("acpitable", "0.10", "", "further ACPI table", keep),
    valued("L", "0.8", "", "directory of BIOS and key maps", keep),
)
