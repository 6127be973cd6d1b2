"""Serial and parallel ports, monitors, and the character devices behind them."""

from __future__ import annotations

import re

from wirt.qemu.legacy.draft import Draft, Port
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import drop, keep, valued
from wirt.qemu.legacy.values import Values, flag_of, join, number, parse, split
from wirt.spec.console import (
    CharBackend,
    File,
    Null,
    Other,
    Pty,
    Stdio,
    Tcp,
    UnixSocket,
    Vc,
)

_FORMS = "null, none, stdio, vc, pty, file:, tcp:, telnet:, unix:, udp:, pipe:, /dev/…"


def backend_of(text: str) -> tuple[CharBackend | None, bool]:
    """Return what ``-serial`` and its like name, and whether a monitor shares it.

    None is a port that is not there. Raises Refused.
    """
    if text.startswith("mon:"):
        backend = backend_of(text.removeprefix("mon:"))[0]
        return (Stdio() if isinstance(backend, Stdio) else backend), True
    if text == "none":
        return None, False
    return _backend(text), False


def _backend(text: str) -> CharBackend:
    name, colon, rest = text.partition(":")
    kind = name if colon else name.partition(",")[0]
    plain: dict[str, CharBackend] = {
        "null": Null(),
        "stdio": Stdio(signals=True),
        "pty": Pty(),
        "braille": Other("braille"),
        "msmouse": Other("msmouse"),
    }
    return plain[kind] if kind in plain else _addressed(kind, rest, text)


def _addressed(kind: str, rest: str, text: str) -> CharBackend:
    match kind:
        case "vc":
            return Vc(_page(rest))
        case "file":
            return File(rest.partition(",")[0])
        case "tcp" | "telnet":
            return _tcp(rest, telnet=kind == "telnet")
        case "unix":
            return _unix(rest)
        case "udp":
            return _udp(rest)
        case "pipe":
            return Other(join([("backend", "pipe"), ("path", rest)]).removeprefix("backend="))
        case "chardev":
            raise Refused(f"chardev:{rest[:30]} is not a character device of this line")
    if text.startswith("/dev/"):
        kind = "parallel" if text.startswith("/dev/parport") else "serial"
        return Other(f"{kind},path={text.replace(',', ',,')}")
    if re.match(r"COM\d", text):
        raise Refused(f"{text} is a port of Windows", "/dev/ttyS0")
    raise Refused(f"{text[:40]!r} is no character device", _FORMS)


def _page(text: str) -> str:
    if text and not re.fullmatch(r"\d{1,5}C?x\d{1,5}C?", text):
        raise Refused(f"vc:{text[:20]} is no size", "80Cx24C or 640x480")
    return text


def _socket_options(parts: list[str]) -> tuple[bool, bool, list[tuple[str, str]]]:
    """Return server, wait and what else there is."""
    said = dict(flag_of(p) if "=" not in p else (p.partition("=")[0], p.partition("=")[2])
                for p in parts if p)  # fmt: skip
    said.pop("delay", None)
    said.pop("nodelay", None)
    server = said.pop("server", "off") == "on"
    wait = said.pop("wait", "on") == "on"
    return server, wait, list(said.items())


def _tcp(rest: str, *, telnet: bool) -> CharBackend:
    address, *options = split(rest)
    host, _, port = address.rpartition(":")
    server, wait, more = _socket_options(options)
    host = host or ("0.0.0.0" if server else "127.0.0.1")  # noqa: S104 - as it was
    where = number(port, "port", 0, 65535)
    if more:
        words = [
            ("host", host.strip("[]")),
            ("port", str(where)),
            ("server", "on" if server else "off"),
        ]
        words += [("wait", "on" if wait else "off")] if server else []
        return Other("socket," + join([*words, ("telnet", "on" if telnet else "off"), *more]))
    return Tcp(where, host.strip("[]"), server, wait if server else False, telnet)


def _unix(rest: str) -> CharBackend:
    path, *options = split(rest)
    server, wait, _more = _socket_options(options)
    return UnixSocket(path, server, wait if server else False)


def _udp(rest: str) -> CharBackend:
    """``udp:[REMOTE]:PORT[@[LOCAL]:PORT]``."""
    remote, _, local = rest.partition("@")
    host, _, port = remote.rpartition(":")
    words = [("host", host or "127.0.0.1"), ("port", str(number(port, "port", 0, 65535)))]
    if local:
        local_host, _, local_port = local.rpartition(":")
        words += [("localaddr", local_host)] if local_host else []
        words += [("localport", str(number(local_port, "port", 0, 65535)))]
    return Other("udp," + join(words))


def _named(draft: Draft, text: str) -> tuple[CharBackend | None, bool]:
    """Return a port's backend; one that a ``-chardev`` describes loses its own name."""
    if not text.startswith("chardev:"):
        return backend_of(text)
    name = text.removeprefix("chardev:")
    if name not in draft.chardevs:
        raise Refused(f"there is no -chardev of id {name[:30]!r} before this")
    return from_chardev(draft.chardevs.pop(name)), False


def serial(draft: Draft, given: Given) -> Outcome | None:
    """A serial port."""
    backend, mux = _named(draft, given.value)
    draft.serials.append(Port(backend, mux))
    return Outcome("same" if backend else "translated", why=_waits(backend))


def parallel(draft: Draft, given: Given) -> Outcome | None:
    """A parallel port."""
    backend, _ = _named(draft, given.value)
    if isinstance(backend, Other) and backend.options.startswith("parallel"):
        draft.need(given.value, "the device")
    draft.parallels.append(Port(backend))
    return Outcome("same")


def monitor(draft: Draft, given: Given) -> Outcome | None:
    """A monitor for people."""
    backend, _ = _named(draft, given.value)
    draft.monitors.append(Port(backend))
    return Outcome("same", why=_waits(backend))


def qmp(draft: Draft, given: Given) -> Outcome | None:
    """A monitor for programs."""
    backend, _ = _named(draft, given.value)
    draft.monitors.append(Port(backend, mode="control"))
    return Outcome("same", why=_waits(backend))


def _waits(backend: CharBackend | None) -> str:
    if isinstance(backend, UnixSocket | Tcp) and backend.server and backend.wait:
        return "QEMU waits until somebody connects, as it did: nowait starts at once"
    return ""


def chardev(draft: Draft, given: Given) -> Outcome | None:
    """A character device with a name, for the options behind it."""
    if given.value in {"?", "help"}:
        draft.query = ["-chardev", "help"]
        return None
    values = parse(given.value, first="backend")
    name = next((text for key, text in values if key == "id"), "")
    if not name:
        raise Refused("a -chardev needs id=")
    if name in draft.chardevs:
        raise Refused(f"there are two -chardev of id {name}")
    draft.chardevs[name] = _given_socket(draft, values)
    return Outcome("same")


def _given_socket(draft: Draft, values: Values) -> Values:
    """A socket that came as a descriptor is the one of its name."""
    made = draft.facts.fd_sockets
    if draft.facts.socket is None or not made:
        return values
    path = draft.facts.socket
    return Values(
        [("path", path(made[text])) if key == "fd" and text in made else (key, text)
         for key, text in values]
    )  # fmt: skip


_BACKENDS = {"tty": "serial", "parport": "parallel", "null": "null"}


def from_chardev(values: Values) -> CharBackend:
    """Return the words of a ``-chardev`` as the spec has them."""
    said = {key: text for key, text in values if key not in {"id", "mux"}}
    kind = said.pop("backend", "")
    kind = _BACKENDS.get(kind, kind)
    said.pop("delay", None)
    said.pop("nodelay", None)
    if kind == "socket":
        return _from_socket(said)
    if kind == "file" and set(said) == {"path"}:
        return File(said["path"])
    if kind == "stdio" and set(said) <= {"signal"}:
        return Stdio(signals=said.get("signal", "on") == "on")
    if kind == "vc" and set(said) <= {"cols", "rows", "width", "height"}:
        return Vc(_from_page(said))
    if kind in {"pty", "null"} and not said:
        return Pty() if kind == "pty" else Null()
    return Other(",".join(filter(None, (kind, join(list(said.items()))))))


def _from_socket(said: dict[str, str]) -> CharBackend:
    server = said.get("server", "off") == "on"
    wait = said.get("wait", "on") == "on"
    telnet = said.get("telnet", "off") == "on"
    keys = set(said) - {"server", "wait", "telnet"}
    if keys == {"path"} and not telnet:
        return UnixSocket(said["path"], server, wait and server)
    if keys == {"host", "port"} and said["port"].isdigit():
        return Tcp(int(said["port"]), said["host"], server, wait and server, telnet)
    return Other("socket," + join(list(said.items())))


def _from_page(said: dict[str, str]) -> str:
    if not said:
        return ""
    across = f"{said['cols']}C" if "cols" in said else said.get("width", "")
    down = f"{said['rows']}C" if "rows" in said else said.get("height", "")
    return f"{across}x{down}"


def mon(draft: Draft, given: Given) -> Outcome | None:
    """A monitor on a named character device."""
    values = parse(given.value, first="chardev")
    name = values.take("chardev")
    mode = values.take("mode", default="readline")
    if mode not in {"readline", "control"}:
        raise Refused(f"mode={mode[:20]}", "readline or control")
    draft.monitors_of[name] = mode
    return Outcome("same")


def virtio_console(draft: Draft, given: Given) -> Outcome | None:
    """A console by virtio."""
    backend, _ = backend_of(given.value)
    if backend is None:
        return Outcome("same")
    name = draft.fresh("virtcon")
    draft.args += ["-device", "virtio-serial-pci"]
    draft.args += ["-chardev", f"{words_of(backend)},id={name}"]
    draft.args += ["-device", f"virtconsole,chardev={name}"]
    return None


def words_of(backend: CharBackend) -> str:
    """Return a backend as ``-chardev`` takes it, without ``id``."""
    match backend:
        case UnixSocket():
            wait = f",wait={'on' if backend.wait else 'off'}" if backend.server else ""
            path = backend.path.replace(",", ",,")
            return f"socket,path={path},server={'on' if backend.server else 'off'}{wait}"
        case Tcp():
            wait = f",wait={'on' if backend.wait else 'off'}" if backend.server else ""
            kind = f"server={'on' if backend.server else 'off'}{wait}"
            telnet = "on" if backend.telnet else "off"
            return f"socket,host={backend.host},port={backend.port},{kind},telnet={telnet}"
        case File():
            return f"file,path={backend.path.replace(',', ',,')}"
        case Stdio():
            return "stdio,signal=" + ("on" if backend.signals else "off")
        case Other():
            return backend.options
        case Pty():
            return "pty"
        case Vc():
            return "vc"
        case _:
            return "null"


OPTIONS = (
    valued("serial", "0.9", "", "a serial port", serial),
    valued("parallel", "0.9", "", "a parallel port", parallel),
    valued("monitor", "0.9", "", "the monitor, for people", monitor),
    valued("qmp", "0.12", "", "the monitor, for programs", qmp),
    valued("qmp-pretty", "2.8", "", "the monitor, for programs, indented", qmp),
    valued("mon", "0.12", "", "a monitor on a character device", mon),
    valued("chardev", "0.12", "", "a character device", chardev),
    valued(
        "virtioconsole",
        "0.10",
        "by 7.2",
        "a console by virtio",
        virtio_console,
        "-device virtio-serial-pci -device virtconsole,chardev=",
    ),
    valued("debugcon", "0.13", "", "output of the BIOS", keep),
    valued("echr", "0.9", "", "escape character of the terminal instead of Ctrl-A", keep),
    valued(
        "bt",
        "kvm-80",
        "by 7.2",
        "Bluetooth",
        drop,
        "",
        "QEMU's Bluetooth was taken out; give the guest a USB adapter: -device usb-host",
    ),
    valued(
        "nvram",
        "kvm-84",
        "by 7.2",
        "file with the NVRAM of Itanium",
        drop,
        "",
        "KVM for Itanium is gone, PCs never used it",
    ),
)
