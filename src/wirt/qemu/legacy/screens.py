"""Who shows the picture, and what serial ports, parallel ports and monitors a line has."""

from __future__ import annotations

from wirt.qemu.legacy.draft import Draft, Port
from wirt.qemu.legacy.note import Refused
from wirt.qemu.legacy.options.chardevs import from_chardev
from wirt.qemu.legacy.plugged import own_backend
from wirt.spec.console import (
    Display,
    Monitor,
    Null,
    Parallel,
    Serial,
    SharesSerial,
    Stdio,
    UnixSocket,
    Vc,
    Vnc,
    Window,
)

_PAGE = "80Cx24C"


def displays(draft: Draft) -> tuple[Display, ...]:
    """Return the windows and servers; the old default is a window."""
    screen = draft.screen
    servers: list[Display] = list(screen.servers)
    if screen.nographic or screen.none or (servers and not screen.asked):
        return tuple(servers)
    toolkit = _toolkit(draft)
    if not toolkit:
        if not servers:
            number = draft.facts.free_display()
            draft.warnings.append(
                "no window can be opened here: the screen is served by VNC at "
                f"127.0.0.1:{5900 + number}"
            )
            servers.append(Vnc(f"127.0.0.1:{number}"))
        return tuple(servers)
    return (*servers, _window(draft, toolkit))


def _toolkit(draft: Draft) -> str:
    wanted = draft.screen.toolkit
    here = draft.facts.windows
    if wanted in here:
        return wanted
    if wanted == "curses":
        return wanted if not draft.facts.strict else ""
    return next((kind for kind in here if kind != "curses"), "")


def _window(draft: Draft, toolkit: str) -> Window:
    screen = draft.screen
    if toolkit == "curses":
        known = ("charset",)
        options = [text for text in screen.options if text.startswith(known)]
        return Window("curses", options=tuple(options))
    options = [text for text in screen.options if toolkit != "gtk" or "show-cursor" not in text]
    if screen.grab and toolkit == "sdl":
        options.append(f"grab-mod={screen.grab}")
    return Window(toolkit, screen.full_screen, tuple(options))  # type: ignore[arg-type]


def ports(
    draft: Draft, shown: tuple[Display, ...]
) -> tuple[tuple[Serial, ...], tuple[Parallel, ...], tuple[Monitor, ...]]:
    """Return serial ports, parallel ports and monitors, with the defaults of old."""
    monitors = _named_monitors(draft)
    if draft.defaults:
        _add_defaults(draft, has_page=bool(shown), has_monitor=bool(monitors))
    serials: list[Serial] = []
    for port in draft.serials:
        if port.backend is None:
            continue
        if port.mux:
            shared = any(
                isinstance(m.backend, SharesSerial) and m.backend.port == len(serials)
                for m in monitors
            )
            if not shared:
                monitors.append(Monitor(SharesSerial(len(serials))))
        serials.append(Serial(port.backend))  # type: ignore[arg-type]
    parallels = [Parallel(port.backend) for port in draft.parallels if port.backend]  # type: ignore[arg-type]
    asked = [
        Monitor(port.backend, port.mode)  # type: ignore[arg-type]
        for port in draft.monitors
        if port.backend is not None
    ]
    _check_terminal(draft, serials, [*asked, *monitors])
    return tuple(serials), tuple(parallels), (*asked, *monitors)


def _named_monitors(draft: Draft) -> list[Monitor]:
    """``-mon``: a monitor on a character device, which a serial port may have already."""
    found = []
    for name, mode in draft.monitors_of.items():
        if name in draft.serial_names:
            draft.serials[draft.serial_names[name]].mux = True
            found.append(Monitor(SharesSerial(draft.serial_names[name]), mode))  # type: ignore[arg-type]
            continue
        if name not in draft.chardevs:
            raise Refused(f"-mon: there is no -chardev of id {name[:40]}")
        backend = from_chardev(draft.chardevs.pop(name))
        if isinstance(backend, UnixSocket) and draft.facts.is_socket(backend.path, "qmp"):
            continue
        backend = own_backend(draft, backend, name)
        found.append(Monitor(backend, mode))  # type: ignore[arg-type]
    return found


def _add_defaults(draft: Draft, *, has_page: bool, has_monitor: bool) -> None:
    """A line that names no port has one of each, and a monitor."""
    page = Vc(_PAGE) if has_page else Null()
    asked = bool(draft.monitors) or has_monitor or any(port.mux for port in draft.serials)
    if draft.screen.nographic and not draft.daemonize:
        terminal_is_free = not _uses_terminal(draft)
        if not draft.serials and terminal_is_free:
            draft.serials.append(Port(Stdio(), mux=not asked))
        elif not asked and terminal_is_free:
            draft.monitors.append(Port(Stdio()))
        page = Null()
    elif not asked and has_page:
        draft.monitors.append(Port(Vc(_PAGE)))
    if not draft.serials:
        draft.serials.append(Port(page))
    if not draft.parallels:
        draft.parallels.append(Port(page))


def _uses_terminal(draft: Draft) -> bool:
    all_ports = [*draft.serials, *draft.parallels, *draft.monitors]
    return any(isinstance(port.backend, Stdio) for port in all_ports)


def _check_terminal(draft: Draft, serials: list[Serial], monitors: list[Monitor]) -> None:
    backends = [*(port.backend for port in serials), *(port.backend for port in monitors)]
    count = sum(isinstance(backend, Stdio) for backend in backends)
    if count > 1:
        raise Refused(
            "two ports want the terminal, which has one user only",
            "-serial mon:stdio shares it between serial port and monitor (Ctrl-A C)",
        )
    if count and draft.daemonize:
        raise Refused(
            "a QEMU in the background has no terminal",
            "without -daemonize, or with -serial and -monitor on sockets",
        )
