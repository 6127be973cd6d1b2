"""What guest agent commands return, as far as wirt looks at it.

Members that wirt does not name are ignored; older agents lack some commands and members.
The reference is QEMU's "QEMU Guest Agent Protocol Reference".
"""

from __future__ import annotations

import msgspec


class _Reply(msgspec.Struct, frozen=True, rename="kebab"):
    """QAPI joins words by '-'."""


class AgentCommand(_Reply, frozen=True):
    name: str
    enabled: bool


class AgentInfo(_Reply, frozen=True):
    """``guest-info``"""

    version: str
    supported_commands: list[AgentCommand] = msgspec.field(
        name="supported_commands", default_factory=list
    )


class OsInfo(_Reply, frozen=True):
    """``guest-get-osinfo``: uname and os-release of the guest."""

    id: str = ""
    name: str = ""
    pretty_name: str = ""
    version: str = ""
    version_id: str = ""
    machine: str = ""
    kernel_release: str = ""
    kernel_version: str = ""


class IpAddress(_Reply, frozen=True):
    """``ip_address_type`` is ``ipv4`` or ``ipv6``."""

    ip_address: str
    ip_address_type: str
    prefix: int


class NetworkInterface(_Reply, frozen=True):
    """An entry of ``guest-network-get-interfaces``"""

    name: str
    hardware_address: str = ""
    ip_addresses: list[IpAddress] = msgspec.field(default_factory=list)


class User(_Reply, frozen=True):
    """An entry of ``guest-get-users``; ``login_time`` in seconds since 1970."""

    user: str
    login_time: float
    domain: str = ""


class ExecStatus(_Reply, frozen=True):
    """``guest-exec-status``; ``exitcode`` or ``signal`` is set once ``exited``."""

    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: bytes = b""  # base64 on the wire
    err_data: bytes = b""
    out_truncated: bool = False
    err_truncated: bool = False


class FileChunk(_Reply, frozen=True):
    """``guest-file-read``"""

    count: int
    eof: bool
    data: bytes = msgspec.field(name="buf-b64", default=b"")


class WriteCount(_Reply, frozen=True):
    """``guest-file-write``"""

    count: int
    eof: bool = False


class HostName(_Reply, frozen=True):
    """``guest-get-host-name``"""

    host_name: str


class ProcessId(_Reply, frozen=True):
    """``guest-exec``"""

    pid: int
