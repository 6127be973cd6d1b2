"""Every error wirt raises, in one tree.

::

    WirtError                   message, hint (the user's next step), exit code
    ├── UsageError              the command line or a value on it is wrong
    ├── SpecError               a machine description is wrong: file, key and line
    ├── NotFound                no machine, image, snapshot … of that name
    ├── AlreadyExists           the name is taken
    ├── Busy                    another command or process holds the thing
    ├── WrongState              the machine is not in the state the verb needs
    ├── MissingDependency       a program, module, device or kernel feature is absent
    ├── HostError               the host refused: permission, space, I/O
    │   └── NoSpace
    ├── QemuError               QEMU refused its command line or ended early
    ├── GuestError              the guest refused or failed what was asked of it
    ├── Timeout                 a deadline passed
    ├── ProtocolError           a peer broke its protocol (QMP, agent, NBD …)
    │   ├── PeerClosed          the peer closed the connection
    │   └── CommandRefused      the peer answered with an error: class and description
    └── ImageError              a disk image: kind, path, offset
        └── one class for each kind, see below

An exit code is part of the interface: scripts test it. The table in the documentation
is made from ``exit_code`` below.
"""

from __future__ import annotations


class WirtError(Exception):
    """What went wrong in one line, and in ``hint`` what the user can do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def concerns(self, name: str) -> None:
        """Put in front which one it was, where several things are done at once."""
        self.message = f"{name}: {self.message}"
        self.args = (self.message,)


class UsageError(WirtError):
    """The command line, or a value given on it, is wrong."""

    exit_code = 2


class SpecError(WirtError):
    """A machine description is wrong; names file, key and line where they are known."""

    exit_code = 3

    def __init__(
        self, message: str, *, key: str = "", file: str = "", line: int = 0, hint: str = ""
    ) -> None:
        place = ":".join(part for part in (file, str(line) if line else "") if part)
        where = f"{place}: " if place else ""
        what = f"{key}: " if key else ""
        super().__init__(f"{where}{what}{message}", hint=hint)
        self.problem = message
        self.key = key
        self.file = file
        self.line = line


class NotFound(WirtError):
    """Nothing of that name exists."""

    exit_code = 4


class AlreadyExists(WirtError):
    """The name is taken."""

    exit_code = 5


class Busy(WirtError):
    """Another command, VM or process holds the thing."""

    exit_code = 6


class WrongState(WirtError):
    """The machine is not in the state the verb needs (for example: not running)."""

    exit_code = 7


class MissingDependency(WirtError):
    """A program, Python module, device or kernel feature is absent."""

    exit_code = 8


class HostError(WirtError):
    """The host refused: permission, I/O error, limits."""

    exit_code = 9


class NoSpace(HostError):
    """A file system is full, or would be."""

    exit_code = 10


class QemuError(WirtError):
    """QEMU refused its command line or ended early; its own words are in the message."""

    exit_code = 11


class GuestError(WirtError):
    """The guest refused or failed what was asked of it."""

    exit_code = 12


class Timeout(WirtError):
    """A deadline passed."""

    exit_code = 13


class ProtocolError(WirtError):
    """A peer broke its protocol: garbage, an answer beyond bounds, or none."""

    exit_code = 14


class PeerClosed(ProtocolError):
    """The peer closed the connection."""


class CommandRefused(ProtocolError):
    """The peer understood the command and answered with an error."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


class ImageError(WirtError):
    """A disk image could not be used; ``path`` and ``offset`` are added at the door."""

    exit_code = 20
    kind = "io"

    def __init__(
        self, message: str, *, path: str = "", offset: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.offset = offset

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        at = f" (at offset {self.offset:#x})" if self.offset is not None else ""
        return f"{where}{self.message}{at}"


class ImageIoError(ImageError):
    """The operating system could not read or write the file."""


class NoMedium(ImageError):
    """A drive of the host has no medium in it; ``tray`` is what a CD drive says of that."""

    exit_code = 29
    kind = "no-medium"

    def __init__(self, message: str, *, path: str, hint: str, tray: str = "") -> None:
        super().__init__(message, path=path, hint=hint)
        self.tray = tray


class NotThisFormat(ImageError):
    """The bytes are not of the format they were opened as, or of none we know."""

    exit_code = 21
    kind = "not-this-format"


class AmbiguousFormat(NotThisFormat):
    """Several formats claim the file; the user must name one."""

    kind = "ambiguous"


class UnsupportedImage(ImageError):
    """The image is valid but uses a feature that is not supported."""

    exit_code = 22
    kind = "unsupported"


class CorruptImage(ImageError):
    """The image contradicts its own format."""

    exit_code = 23
    kind = "corrupt"


class OutOfBounds(ImageError):
    """A request lies outside the image, or a budget for hostile images was exceeded."""

    exit_code = 24
    kind = "out-of-bounds"


class ImageInUse(ImageError):
    """Another process holds the image (QEMU's lock protocol)."""

    exit_code = 25
    kind = "in-use"


class ImageNoSpace(ImageError):
    """No space left while writing the image."""

    exit_code = 26
    kind = "no-space"


class ImageLeaks(ImageError):
    """An image holds space that nothing uses; its data are whole (``wirt img check``)."""

    exit_code = 28
    kind = "leaks"


class ImageAccessDenied(ImageError):
    """The open gate does not allow the file that the image names."""

    exit_code = 27
    kind = "denied"
