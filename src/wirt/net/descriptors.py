"""Ends of wires as open descriptors, to be handed to a QEMU that could not make them itself.

A TAP comes from ``/dev/net/tun`` (Documentation/networking/tuntap.rst of Linux) and lasts as
long as somebody has it open. A port of a VDE switch is asked for on the switch's control
socket; the request and its answer are, in the host's byte order,

::

    magic 0xfeedface (4), version 3 (4), 1 << 8 x port (4), own sockaddr_un (110), text, NUL
    sockaddr_un of the port (110)

and from then on each datagram between the two sockets is an Ethernet frame. The port is given
back when the control connection closes.

Also run as ``python -I -S descriptors.py FD JSON`` in a namespace or by root for another user,
with the standard library only: descriptors go back over the socket FD.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import sys

TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_REQUEST = struct.Struct("=III")
_ADDRESS = struct.Struct("=H108s")
_MAGIC, _VERSION = 0xFEEDFACE, 3
_ANSWER_SECONDS = 10.0


def open_tap(name: str, *, offload: bool) -> tuple[int, str]:
    """Make or take the TAP ``name`` (a ``%d`` in it is numbered). Returns it and its name.

    Raises OSError.
    """
    fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
    try:
        request = struct.pack("16sH22x", name.encode(), flags)
        answer = fcntl.ioctl(fd, _TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd, answer[:16].split(b"\0", 1)[0].decode()


def open_port(directory: str, own: str, port: int, text: str) -> tuple[int, int]:
    """Take a port of the VDE switch at ``directory``; 0: any. Returns frames and control.

    ``own`` is a path for a moment, which the switch can reach. Raises OSError.
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    frames = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        control.settimeout(_ANSWER_SECONDS)
        control.connect(os.path.join(directory, "ctl"))
        frames.bind(own)
        address = _ADDRESS.pack(socket.AF_UNIX, own.encode())
        request = _REQUEST.pack(_MAGIC, _VERSION, port << 8) + address
        control.sendall(request + text.encode()[:100] + b"\0")
        frames.connect(_port_address(control))
        control.settimeout(None)
    except BaseException:
        control.close()
        frames.close()
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(own)
    return frames.detach(), control.detach()


def _port_address(control: socket.socket) -> bytes:
    answer = b""
    while len(answer) < _ADDRESS.size:
        part = control.recv(_ADDRESS.size - len(answer))
        if not part:
            raise OSError(errno.ECONNREFUSED, "the switch refused the port")
        answer += part
    path: bytes = _ADDRESS.unpack(answer)[1]
    return path.split(b"\0", 1)[0]


def main() -> int:
    """Answer over the socket: a JSON object with the TAP's name or the error, and descriptors."""
    wanted = json.loads(sys.argv[2])
    if wanted.get("uid"):  # the switch makes the port's socket its peer's: it must be its own
        os.setgroups([])
        os.setresgid(*[wanted["uid"]] * 3)
        os.setresuid(*[wanted["uid"]] * 3)
    fds: list[int] = []
    answer: dict[str, object] = {}
    try:
        if "tap" in wanted:
            fd, answer["name"] = open_tap(wanted["tap"], offload=wanted["offload"])
            fds = [fd]
        else:
            fds = [*open_port(wanted["switch"], wanted["own"], wanted["port"], wanted["text"])]
    except OSError as error:
        answer["errno"] = error.errno
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        socket.send_fds(parent, [json.dumps(answer).encode()], fds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
