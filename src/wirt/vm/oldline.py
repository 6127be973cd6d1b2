"""Old lines on this host: what they depend on here, and how they are run."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from wirt.errors import ImageError, WirtError
from wirt.host.accel import Accelerator, choose_accelerator
from wirt.host.cpu import host_cpu
from wirt.host.process import find_program
from wirt.host.qemu_binary import find_qemu
from wirt.host.qemu_probe import MODULE_DIRECTORIES, probe
from wirt.host.vnc_display import FreeDisplay
from wirt.image.probe import probe_file
from wirt.image.storage.drive import is_block_device, names_cd_drive
from wirt.qapi.capabilities import Capabilities
from wirt.qemu.legacy.facts import Facts, format_by_name
from wirt.qemu.legacy.translate import Translation, todays_line, translate
from wirt.qemu.runtime import Runtime
from wirt.spec.machine import Machine
from wirt.vm.context import Context

_SOUND_DRIVERS = {"alsa", "oss", "pa", "pipewire", "sdl", "none"}


class OldLine(msgspec.Struct, frozen=True):
    """A translated line and what runs it."""

    translation: Translation
    capabilities: Capabilities
    accelerator: Accelerator
    binary: str
    display: FreeDisplay
    """Where its screen is served, if it says no better."""

    def argv(self, runtime: Runtime | None = None) -> list[str]:
        """Return today's line. Raises SpecError, MissingDependency."""
        machine = self.translation.machine
        if machine is None:
            return [self.binary, *self.translation.query] if self.translation.query else []
        facts = runtime or explaining(machine)
        facts = replace(facts, accelerator=self.accelerator.name)
        return todays_line(self.translation, facts, self.capabilities, self.binary)


def understand(context: Context, words: Sequence[str], *, strict: bool, **known: Any) -> OldLine:
    """Translate a line for this host; ``known`` is what the caller knows better (``Facts``).

    ``strict`` refuses files that are not there. Raises MissingDependency without a QEMU.
    """
    binary = find_qemu()
    capabilities = probe(binary, context.home.cache)
    built_in = capabilities.accelerators
    here = choose_accelerator("auto", cache_dir=context.home.cache, built_in=built_in)
    display = FreeDisplay()
    facts = host_facts(strict=strict, has_kvm=here.name == "kvm")
    facts = replace(facts, free_display=display.number, **known)
    translation = translate(words, facts, capabilities)
    machine = translation.machine
    if machine is not None and machine.accelerator == "tcg":
        here = Accelerator("tcg", "as the line asks")
    return OldLine(translation, capabilities, here, binary, display)


def host_facts(*, strict: bool, has_kvm: bool) -> Facts:
    """Return what this host knows and a line does not say."""
    modules = _modules()
    return Facts(
        format_of=_format_of,
        exists=os.path.exists,
        windows=_windows(modules),
        audio=_audio(modules),
        virtualization=host_cpu().extension,
        has_vhost=os.access("/dev/vhost-net", os.R_OK | os.W_OK),
        has_samba=_has_program("smbd"),
        has_kvm=has_kvm,
        strict=strict,
    )


def _format_of(path: str) -> str:
    """Return the format by the file's bytes, as QEMU found it, or by its name."""
    try:
        return probe_file(path)
    except ImageError:
        return format_by_name(path)


def _modules() -> set[str]:
    found = [path for pattern in MODULE_DIRECTORIES for path in glob.glob(pattern)]
    return {name for path in found for name in os.listdir(path)}


def _has(modules: set[str], name: str) -> bool:
    """A QEMU without modules has everything built in."""
    return not modules or f"{name}.so" in modules


def _windows(modules: set[str]) -> tuple[str, ...]:
    screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    kinds = [kind for kind in ("sdl", "gtk") if screen and _has(modules, f"ui-{kind}")]
    if sys.stdout.isatty() and _has(modules, "ui-curses"):
        kinds.append("curses")
    return tuple(kinds)


def _audio(modules: set[str]) -> str:
    """Return the sound driver: as the old environment variable says, or what is there."""
    wanted = os.environ.get("QEMU_AUDIO_DRV", "")
    if wanted in _SOUND_DRIVERS:
        return wanted
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    pulse = os.environ.get("PULSE_SERVER") or (run and os.path.exists(f"{run}/pulse/native"))
    if pulse and _has(modules, "audio-pa"):
        return "pa"
    if run and os.path.exists(f"{run}/pipewire-0") and _has(modules, "audio-pipewire"):
        return "pipewire"
    if os.path.exists("/dev/snd") and _has(modules, "audio-alsa"):
        return "alsa"
    return "none"


def _has_program(name: str) -> bool:
    try:
        find_program(name)
    except WirtError:
        return False
    return True


def explaining(machine: Machine) -> Runtime:
    """Return a runtime for a line that is shown, not run."""
    overlays = {index: f"overlay{index}.qcow2" for index in range(len(machine.disks))}
    return Runtime(
        accelerator="tcg",
        directory="",
        socket=lambda name: f"{name}.sock",
        host_devices=_matching(machine, is_block_device),
        cd_drives=_matching(machine, names_cd_drive),
        overlays=overlays,
        firmware_code="OVMF_CODE.fd",
        uefi_variables="OVMF_VARS.fd",
        sandbox=False,
        attended=True,
    )


def running(machine: Machine, overlays: dict[int, int]) -> Runtime:
    """Return a runtime for a line that becomes this process.

    Paths are as the user wrote them, from where the user is; ``overlays`` maps disks to
    descriptors of files that have no name any more.
    """
    paths = {index: f"/proc/self/fd/{fd}" for index, fd in overlays.items()}
    return replace(explaining(machine), overlays=paths)


def _matching(machine: Machine, fits: Callable[[str], bool]) -> frozenset[str]:
    return frozenset(disk.image for disk in machine.disks if fits(disk.image))


def make_overlays(machine: Machine) -> dict[int, int]:
    """Make an overlay for each disk whose writes are lost; return index → descriptor.

    They have no names: whatever ends QEMU, nothing stays behind. Raises ImageError.
    """
    import tempfile

    from wirt.image.create import create_image
    from wirt.image.open import open_image

    made: dict[int, int] = {}
    for index, disk in enumerate(machine.disks):
        if not (disk.discard_writes and disk.image):
            continue
        with open_image(
            disk.image, format=disk.format, force_share=True, with_backing=False
        ) as image:
            size = image.virtual_size
        with tempfile.TemporaryDirectory(dir=_temporary()) as directory:
            path = os.path.join(directory, "overlay.qcow2")
            create_image(path, "qcow2", size)
            made[index] = os.open(path, os.O_RDWR)
            os.set_inheritable(made[index], True)
    return made


def _temporary() -> str:
    """QEMU put its snapshots into TMPDIR, else /var/tmp: they can be large."""
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - a private directory in it
