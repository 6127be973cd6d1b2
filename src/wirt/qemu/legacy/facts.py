"""What the host knows and the line does not say. The defaults are those of an empty host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from wirt.spec.nic import Backend


def _nothing(_path: str) -> bool:
    return False


def _first() -> int:
    return 0


def format_by_name(path: str) -> str:
    """Return the format that a file's name suggests: for files that are not there."""
    suffix = path.rpartition(".")[2].lower()
    known = {"vhd": "vpc"}
    named = ("qcow2", "qcow", "vmdk", "vdi", "vpc", "vhdx", "qed", "parallels")
    return known.get(suffix, suffix if suffix in named else "raw")


class Facts(msgspec.Struct, frozen=True):
    """Of the host that runs the line.

    ``format_of`` looks into an image. ``windows`` are the toolkits that can open a window
    here. ``virtualization`` is the CPU's: ``vmx``, ``svm`` or empty. ``free_display`` returns
    the number of a VNC display that nobody has, always the same.

    For lines that wirt made itself: ``directory``, ``socket`` and ``memory_file`` as in
    ``qemu.runtime``; ``fd_images`` and ``fd_sockets``, what came as which descriptor;
    ``backends``, what the host made under the name of which netdev.
    """

    format_of: Callable[[str], str] = format_by_name
    exists: Callable[[str], bool] = _nothing
    windows: Collection[str] = ()
    free_display: Callable[[], int] = _first
    audio: str = "none"
    virtualization: str = ""
    has_vhost: bool = False
    has_samba: bool = False
    has_kvm: bool = False
    directory: str = ""
    socket: Callable[[str], str] | None = None
    memory_file: str = ""
    fd_images: Mapping[int, str] = msgspec.field(default_factory=dict)
    fd_sockets: Mapping[str, str] = msgspec.field(default_factory=dict)
    backends: Mapping[str, Backend] = msgspec.field(default_factory=dict)
    modern: bool = False
    """What a line leaves open is as QEMU has had it since 2.2, not as it was in 2009."""
    strict: bool = False
    """Files and devices that are absent are refused; else they are believed to come."""

    def own_path(self, path: str) -> str:
        """Return a path of the machine's own directory as its description has it."""
        inside = self.directory and path.startswith(f"{self.directory}/")
        return path[len(self.directory) + 1 :] if inside else path

    def is_socket(self, path: str, name: str) -> bool:
        """True if ``path`` is where wirt puts the machine's socket ``name``."""
        return self.socket is not None and path == self.socket(name)
