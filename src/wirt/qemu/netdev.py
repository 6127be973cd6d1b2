"""Network backends: one function for each struct of ``spec.nic.Backend``."""

from __future__ import annotations

from wirt.qapi.value import QapiObject
from wirt.qemu.runtime import Runtime
from wirt.spec.nic import Backend, Forward, Unplugged, User


def backend_value(backend: Backend, name: str, runtime: Runtime) -> QapiObject | None:
    """Return a backend as ``netdev_add`` takes it; None for a card without a cable."""
    match backend:
        case User():
            return _user(backend, name, runtime)
        case Unplugged():
            return None


def needs_spawn(backend: Backend) -> bool:
    """True if QEMU itself starts a program for the backend, which its sandbox would kill."""
    match backend:
        case User():
            return bool(backend.smb) or any("-cmd:" in text for text in backend.guest_forwards)
        case Unplugged():
            return False


def _user(user: User, name: str, runtime: Runtime) -> QapiObject:
    value: QapiObject = {"type": "user", "id": name}
    texts = {
        "net": user.network,
        "host": user.host,
        "dns": user.dns,
        "dhcpstart": user.dhcp_start,
        "hostname": user.hostname,
        "domainname": user.domain,
        "tftp": user.tftp and runtime.path(user.tftp),
        "bootfile": user.bootfile,
        "smb": user.smb and runtime.path(user.smb),
    }
    value.update({key: text for key, text in texts.items() if text})
    if user.restrict:
        value["restrict"] = True
    if user.forwards:
        value["hostfwd"] = [{"str": forward_text(forward)} for forward in user.forwards]
    if user.guest_forwards:
        value["guestfwd"] = [{"str": text} for text in user.guest_forwards]
    return value


def forward_text(forward: Forward) -> str:
    """Return a forward as ``hostfwd`` writes it."""
    host = f"[{forward.host_address}]" if ":" in forward.host_address else forward.host_address
    ends = f"{host}:{forward.host_port}-{forward.guest_address}:{forward.guest_port}"
    return f"{forward.protocol}:{ends}"
