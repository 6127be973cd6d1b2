"""What a person or program uses to talk to the machine: displays, serials, channels."""

from typing import Annotated, Literal

import msgspec

from wirt.spec.setting import ID_PATTERN, number, setting, size, text


class Vnc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="vnc", omit_defaults=True):
    """A VNC server for the guest's screen."""

    listen: Annotated[
        str,
        setting("'unix' for a socket in the VM's runtime directory, unix:PATH, or ADDRESS:DISPLAY"),
    ] = "unix"
    options: Annotated[tuple[str, ...], setting("Further options as QEMU's -vnc knows them")] = ()


class Spice(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="spice", omit_defaults=True
):
    """A SPICE server for the guest's screen."""

    listen: Annotated[
        str, setting("'unix' for a socket in the VM's runtime directory, or ADDRESS:PORT")
    ] = "unix"


class Window(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="window", omit_defaults=True
):
    """A window (or a text screen) on the terminal that starts the machine."""

    toolkit: Annotated[Literal["gtk", "sdl", "curses"], setting("Who draws it")] = "gtk"
    full_screen: Annotated[bool, setting("Full screen")] = False
    options: Annotated[tuple[str, ...], setting("Further options as QEMU's -display")] = ()


Display = Vnc | Spice | Window


class Video(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The graphics card."""

    model: Annotated[
        Literal["none", "std", "virtio", "cirrus", "vmware", "qxl"],
        setting("Card that the guest sees", flags=("--video",)),
    ] = "std"
    memory: Annotated[int, size("Video memory; 0: the card's default", default_unit="M")] = 0


class Console(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="console", omit_defaults=True
):
    """Kept by wirt: logged with a bound, attached to with ``wirt console``."""


class UnixSocket(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unix", omit_defaults=True
):
    """A unix socket; without a path one in the VM's runtime directory."""

    path: Annotated[str, text("Path of the socket")] = ""
    server: Annotated[bool, setting("Listen instead of connect")] = True
    wait: Annotated[bool, setting("Do not start before a client is there")] = False


class Tcp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tcp", omit_defaults=True):
    """A TCP connection, optionally speaking telnet."""

    port: Annotated[int, number("Port", ge=0, le=65535)]
    host: Annotated[str, text("Address")] = "127.0.0.1"
    server: Annotated[bool, setting("Listen instead of connect")] = True
    wait: Annotated[bool, setting("Do not start before a client is there")] = False
    telnet: Annotated[bool, setting("Speak telnet")] = False


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="file", omit_defaults=True):
    """A file that receives the output. Not bounded: prefer ``console``."""

    path: Annotated[str, text("Path of the file")]


class Stdio(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stdio", omit_defaults=True
):
    """The terminal that starts the machine in the foreground."""

    signals: Annotated[bool, setting("Ctrl-C ends QEMU instead of reaching the guest")] = False


class Pty(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pty", omit_defaults=True):
    """A pseudo terminal that QEMU makes."""


class Null(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="null", omit_defaults=True):
    """Nowhere."""


class Vc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="vc", omit_defaults=True):
    """A text page of the machine's display (Ctrl-Alt-2 and on), as in the old days."""

    size: Annotated[str, text("Size: 80Cx24C or 640x480; empty: the display's")] = ""


class Other(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="other", omit_defaults=True
):
    """Any other character device, in the words of QEMU's ``-chardev`` without ``id``."""

    options: Annotated[str, text("Such as udp,host=127.0.0.1,port=4555 or serial,path=/dev/ttyS0")]


CharBackend = Console | UnixSocket | Tcp | File | Stdio | Pty | Null | Vc | Other


class Serial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A serial port (16550 on the ISA bus)."""

    backend: Annotated[CharBackend, setting("What it is connected to")] = Console()


class Parallel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A parallel port on the ISA bus."""

    backend: Annotated[CharBackend, setting("What it is connected to")] = Null()


class SharesSerial(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="serial", omit_defaults=True
):
    """A serial port's own backend; Ctrl-A C switches between the port and the monitor."""

    port: Annotated[int, number("Number of the serial port", ge=0, le=3)] = 0


class Monitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A monitor of QEMU beside the one that wirt uses."""

    backend: Annotated[
        UnixSocket | Tcp | File | Stdio | Pty | Null | Vc | Other | SharesSerial,
        setting("What it is connected to"),
    ] = UnixSocket()
    mode: Annotated[
        Literal["readline", "control"], setting("readline for people, control for QMP")
    ] = "readline"


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A virtio-serial port: a named byte stream between host and guest."""

    name: Annotated[
        str,
        text(
            "Name in the guest: /dev/virtio-ports/NAME",
            pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$",
        ),
    ]
    id: Annotated[str, text("Identifier of the device", pattern=ID_PATTERN)] = ""
    backend: Annotated[UnixSocket | Null, setting("What it is connected to")] = UnixSocket()
