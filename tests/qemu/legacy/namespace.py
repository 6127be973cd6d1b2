"""Run QEMU in a network namespace of its own, with the descriptors that a line names.

    python namespace.py FDS WORDS…

FDS is ``17=tap,25=socket`` or ``-``. Nothing that a line listens on is seen outside.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def main(fds: str, words: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNET if uid == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(flags):
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    raise_loopback()
    for number, kind in (part.split("=") for part in fds.split(",") if part != "-"):
        give(int(number), kind)
    os.execvp(words[0], words)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def give(number: int, kind: str) -> None:
    if kind == "tap":
        fd = os.open("/dev/net/tun", os.O_RDWR)
        name = f"tap-fd{number}".encode()
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14s", name, IFF_TAP | IFF_NO_PI, b""))
    elif kind == "listen":
        server = socket.create_server(("127.0.0.1", number))
        os.set_inheritable(server.detach(), True)
        return
    else:
        ours, theirs = socket.socketpair()
        os.set_inheritable(ours.detach(), True)  # else it would read as the end of the stream
        fd = theirs.detach()
    os.dup2(fd, number, inheritable=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
