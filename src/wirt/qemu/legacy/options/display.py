"""The graphics card, windows, VNC and SPICE."""

from __future__ import annotations

import re

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import drop, flag, keep, valued
from wirt.qemu.legacy.values import Values, join, number, parse
from wirt.spec.console import Spice, Video, Vnc

_CARDS = {
    "std": "std", "cirrus": "cirrus", "vmware": "vmware", "qxl": "qxl", "virtio": "virtio",
    "none": "none",
}  # fmt: skip
_DEVICES = {
    "std": "-device VGA", "cirrus": "-device cirrus-vga", "vmware": "-device vmware-svga",
    "qxl": "-device qxl-vga", "virtio": "-device virtio-vga",
}  # fmt: skip
_OTHER_CARDS = {
    "xenfb": "it is for Xen guests", "tcx": "it is a card of SPARC stations",
    "cg3": "it is a card of SPARC stations",
}  # fmt: skip
CERTIFICATES = "/etc/pki/qemu"
"""Where QEMU looked for x509 files when the line named no directory."""


def vga(draft: Draft, given: Given) -> Outcome | None:
    """The card."""
    name = given.value.partition(",")[0]
    if name in _OTHER_CARDS:
        raise Refused(f"{name}: {_OTHER_CARDS[name]}", "-vga std")
    if name in {"?", "help"}:
        draft.query = ["-vga", "help"]
        return None
    if name not in _CARDS:
        raise Refused(f"there is no card {name[:30]!r}", ", ".join(_CARDS))
    draft.settings["video"] = Video(_CARDS[name])  # type: ignore[arg-type]
    return Outcome(
        today=_DEVICES.get(name, "no -device"),
        why="retrace= is left out" if "," in given.value else "",
    )


def card(draft: Draft, given: Given) -> Outcome | None:
    """``-std-vga`` and its like."""
    draft.settings["video"] = Video(given.option.replace("vga", "").strip("-"))  # type: ignore[arg-type]
    return None


def sdl(draft: Draft, _given: Given) -> Outcome | None:
    """A window."""
    draft.screen.asked = True
    draft.screen.toolkit = "sdl"
    return _windowless(draft, "sdl")


def _windowless(draft: Draft, toolkit: str) -> Outcome | None:
    if toolkit in draft.facts.windows:
        return Outcome(today=f"-display {toolkit}")
    other = next((kind for kind in draft.facts.windows if kind != "curses"), "")
    if other:
        return Outcome(today=f"-display {other}", why=f"this QEMU cannot open {toolkit} windows")
    place = f"127.0.0.1:{5900 + draft.facts.free_display()}"
    return Outcome(
        today="-vnc", why=f"no window can be opened here: the screen is served by VNC at {place}"
    )


def curses(draft: Draft, _given: Given) -> Outcome | None:
    """The text screen on the terminal."""
    draft.screen.asked = True
    draft.screen.toolkit = "curses"
    return None


def nographic(draft: Draft, _given: Given) -> Outcome | None:
    """No picture; serial port and monitor on the terminal."""
    draft.screen.nographic = True
    return None


def display(draft: Draft, given: Given) -> Outcome | None:
    """Who shows the picture."""
    if given.value in {"?", "help"}:
        draft.query = ["-display", "help"]
        return None
    values = parse(given.value.replace("vnc=", "vnc:", 1), first="type")
    kind = values.take("type")
    if kind.startswith("vnc:"):
        return vnc(draft, Given("vnc", given.value.removeprefix("vnc="), given.position))
    if kind == "none":
        draft.screen.none = True
    elif kind in {"sdl", "gtk", "curses"}:
        draft.screen.asked, draft.screen.toolkit = True, kind
        draft.screen.full_screen |= values.has("full-screen") and values.flag("full-screen")
        draft.screen.options += [f"{key}={text}" for key, text in values if key != "full-screen"]
    else:
        draft.screen.none = True
        return keep(draft, given)
    return Outcome("same")


def vnc(draft: Draft, given: Given) -> Outcome | None:
    """The picture by VNC."""
    values = parse(given.value, first="")
    listen = values.pairs.pop(0)[0] if values.pairs and values.pairs[0][1] == "on" else ""
    if "=" in given.value.split(",")[0]:
        raise Refused("the address comes first: -vnc HOST:DISPLAY,option=…")
    listen = listen or given.value.partition(",")[0]
    if listen == "none":
        draft.screen.none = True
        return Outcome("same", today="-display none")
    if not re.search(r":\d+$", listen) and not listen.startswith("unix:"):
        raise Refused(f"-vnc {listen[:40]!r} is not HOST:DISPLAY", ":1 or 127.0.0.1:1")
    if listen.startswith("unix:"):
        listen = _socket(draft, listen.removeprefix("unix:"))
    remarks: list[str] = []
    options = _encryption(draft, values, remarks)
    options += [f"{key}={text.replace(',', ',,')}" for key, text in values]
    draft.screen.servers.append(Vnc(listen, tuple(options)))
    return Outcome("translated" if remarks else "same", why="; ".join(remarks))


def _socket(draft: Draft, path: str) -> str:
    if draft.facts.is_socket(path, f"vnc{len(draft.screen.servers)}"):
        return "unix"
    return f"unix:{draft.facts.own_path(path)}"


def _encryption(draft: Draft, values: Values, remarks: list[str]) -> list[str]:
    verify = values.take("x509verify")
    directory = verify or values.take("x509")
    wanted = bool(directory) or (values.has("tls") and values.flag("tls"))
    values.take("tls")
    made = []
    if wanted:
        made.append(f"tls-creds={_credentials(draft, directory, verify=bool(verify))}")
        remarks.append("tls and x509 are -object tls-creds-… now")
    if values.has("acl") and values.flag("acl"):
        name = draft.fresh("vncacl")
        draft.args += ["-object", f"authz-list,id={name},policy=deny"]
        made.append(f"sasl-authz={name}")
        remarks.append("acl is -object authz-list now, and lets nobody in until it has rules")
    return made


def _credentials(draft: Draft, directory: str, *, verify: bool) -> str:
    name = draft.fresh("vnctls")
    if not directory:
        draft.args += ["-object", f"tls-creds-anon,id={name},endpoint=server"]
        return name
    directory = CERTIFICATES if directory == "on" else directory
    draft.need(f"{directory}/ca-cert.pem", "the certificate")
    peers = "on" if verify else "off"
    folder = directory.replace(",", ",,")
    words = f"tls-creds-x509,id={name},dir={folder},endpoint=server,verify-peer={peers}"
    draft.args += ["-object", words]
    return name


def spice(draft: Draft, given: Given) -> Outcome | None:
    """The picture by SPICE."""
    values = parse(given.value)
    pairs = [(key.replace("_", "-"), text) for key, text in values]
    keys = {key for key, _ in pairs}
    if keys <= {"port", "addr", "disable-ticketing", "unix"} and "disable-ticketing" in keys:
        listen = _spice_address(draft, dict(pairs))
        if listen:
            draft.screen.servers.append(Spice(listen))
            return Outcome("same")
    draft.args += ["-spice", join(pairs)]
    draft.screen.none = True
    return Outcome("same")


def _spice_address(draft: Draft, said: dict[str, str]) -> str:
    """Return where SPICE listens, if the spec can say it."""
    if said.get("unix") == "on":
        name = f"spice{len(draft.screen.servers)}"
        return "unix" if draft.facts.is_socket(said.get("addr", ""), name) else ""
    address = said.get("addr") or "0.0.0.0"  # noqa: S104 - as it was
    return f"{address}:{number(said.get('port', ''), 'port', 1, 65535)}"


def full_screen(draft: Draft, _given: Given) -> Outcome | None:
    """Full screen."""
    draft.screen.full_screen = True
    return None


def grab(draft: Draft, given: Given) -> Outcome | None:
    """Keys that give the mouse back."""
    draft.screen.grab = "rctrl" if given.option == "ctrl-grab" else "lshift-lctrl-lalt"
    if "sdl" not in draft.facts.windows:
        return Outcome("dropped", why="no SDL window is opened here; others have their own keys")
    return Outcome(today=f"-display sdl,grab-mod={draft.screen.grab}")


def no_quit(draft: Draft, _given: Given) -> Outcome | None:
    """The window cannot be closed."""
    draft.screen.options.append("window-close=off")
    return None


def show_cursor(draft: Draft, _given: Given) -> Outcome | None:
    """The host's pointer stays visible."""
    draft.screen.options.append("show-cursor=on")
    return None


OPTIONS = (
    valued("vga", "kvm-80", "", "graphics card", vga),
    flag("std-vga", "0.8", "kvm-80", "the VESA graphics card", card, "-vga std"),
    flag("cirrusvga", "0.8", "kvm-80", "the Cirrus graphics card", card, "-vga cirrus"),
    flag("vmwarevga", "0.9", "kvm-80", "the graphics card of VMware", card, "-vga vmware"),
    flag("sdl", "0.10", "7.1", "an SDL window", sdl, "-display sdl"),
    flag("curses", "kvm-65", "7.1", "the text screen on the terminal", curses, "-display curses"),
    flag(
        "nographic",
        "0.8",
        "",
        "no picture; serial port and monitor on the terminal",
        nographic,
        "-display none -serial mon:stdio",
    ),
    valued("display", "0.15", "", "who shows the picture", display),
    valued("vnc", "0.8", "", "the picture by VNC", vnc),
    valued("spice", "0.15", "", "the picture by SPICE", spice),
    flag("full-screen", "0.8", "", "full screen", full_screen, "-display …,full-screen=on"),
    flag(
        "no-frame",
        "0.9",
        "by 7.2",
        "no frame around the window",
        drop,
        "",
        "your desktop's window manager decides about frames",
    ),
    flag(
        "alt-grab",
        "0.9",
        "7.1",
        "Ctrl-Alt-Shift gives the mouse back",
        grab,
        "-display sdl,grab-mod=",
    ),
    flag(
        "ctrl-grab",
        "0.12",
        "7.1",
        "the right Ctrl gives the mouse back",
        grab,
        "-display sdl,grab-mod=",
    ),
    flag(
        "no-quit",
        "kvm-17",
        "7.0",
        "the window cannot be closed",
        no_quit,
        "-display …,window-close=off",
    ),
    flag(
        "show-cursor",
        "0.9",
        "6.0",
        "the host's pointer stays visible",
        show_cursor,
        "-display …,show-cursor=on",
    ),
    flag(
        "portrait",
        "0.9",
        "9.2",
        "the picture turned by 90 degrees",
        drop,
        "",
        "it was for hand-helds: PCs have wide screens",
    ),
    valued(
        "rotate",
        "0.15",
        "9.2",
        "the picture turned",
        drop,
        "",
        "it was for hand-helds: PCs have wide screens",
    ),
    valued("k", "0.8", "", "keyboard layout", keep),
    valued(
        "g", "0.8", "", "resolution, on other boards", drop, "", "PCs choose their own resolution"
    ),
)
