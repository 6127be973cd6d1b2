"""What QMP commands return and events carry, as far as wirt looks at it.

Members that wirt does not name are ignored; what a struct requires and QEMU does not send
is a ProtocolError. Sizes are in bytes and times in milliseconds unless a name says more.
Enumerations are strings, since newer QEMUs add members. The reference is QEMU's
"QMP Reference Manual".
"""

from __future__ import annotations

import msgspec

from wirt.protocols.qmp.codec import QemuVersion, VersionInfo

__all__ = [
    "BalloonInfo",
    "BlockCache",
    "BlockInfo",
    "BlockJobInfo",
    "BlockNodeInfo",
    "ChardevInfo",
    "CommandInfo",
    "CpuInfoFast",
    "ImageInfo",
    "JobInfo",
    "JobStatusChange",
    "KvmInfo",
    "MachineInfo",
    "MemorySize",
    "MigrationCapability",
    "MigrationChange",
    "MigrationInfo",
    "MigrationRam",
    "NameInfo",
    "PortChange",
    "QemuVersion",
    "ShutdownInfo",
    "SnapshotInfo",
    "StatusInfo",
    "UuidInfo",
    "VersionInfo",
    "VncInfo",
]


class _Reply(msgspec.Struct, frozen=True, rename="kebab"):
    """QAPI joins words by '-'; the exceptions are named beside their fields."""


class StatusInfo(_Reply, frozen=True):
    """``query-status``; ``status`` is running, paused, inmigrate, postmigrate, shutdown …"""

    running: bool
    status: str


class UuidInfo(_Reply, frozen=True):
    """``query-uuid``"""

    uuid: str = msgspec.field(name="UUID")


class NameInfo(_Reply, frozen=True):
    """``query-name``"""

    name: str = ""


class KvmInfo(_Reply, frozen=True):
    """``query-kvm``"""

    enabled: bool
    present: bool


class CommandInfo(_Reply, frozen=True):
    """An entry of ``query-commands``"""

    name: str


class CpuInfoFast(_Reply, frozen=True):
    """An entry of ``query-cpus-fast``; ``thread_id`` is the host's thread of the vCPU."""

    cpu_index: int
    qom_path: str
    thread_id: int


class MachineInfo(_Reply, frozen=True):
    """An entry of ``query-machines``"""

    name: str
    cpu_max: int
    alias: str = ""
    is_default: bool = False
    deprecated: bool = False
    hotpluggable_cpus: bool = False
    default_cpu_type: str = ""
    default_ram_id: str = ""


class MemorySize(_Reply, frozen=True):
    """``query-memory-size-summary``"""

    base_memory: int
    plugged_memory: int = 0


class BalloonInfo(_Reply, frozen=True):
    """``query-balloon`` and the event BALLOON_CHANGE: memory the guest has now."""

    actual: int


class ChardevInfo(_Reply, frozen=True):
    """An entry of ``query-chardev``"""

    label: str
    filename: str
    frontend_open: bool


class VncInfo(_Reply, frozen=True):
    """``query-vnc``"""

    enabled: bool
    host: str = ""
    service: str = ""
    family: str = ""
    auth: str = ""


class BlockCache(_Reply, frozen=True):
    writeback: bool
    direct: bool
    no_flush: bool


class SnapshotInfo(_Reply, frozen=True):
    """An internal snapshot of an image; ``vm_state_size`` is 0 if it holds a disk only."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int


class ImageInfo(_Reply, frozen=True):
    filename: str
    format: str
    virtual_size: int
    actual_size: int | None = None
    dirty_flag: bool = False
    backing_filename: str = ""
    full_backing_filename: str = ""
    backing_filename_format: str = ""
    snapshots: list[SnapshotInfo] = msgspec.field(default_factory=list)


class BlockNodeInfo(_Reply, frozen=True):
    """An entry of ``query-named-block-nodes``, and what is inserted in a drive."""

    file: str
    ro: bool
    drv: str
    image: ImageInfo
    cache: BlockCache
    encrypted: bool = False
    node_name: str = ""
    backing_file: str = msgspec.field(name="backing_file", default="")


class FdsetAdded(_Reply, frozen=True):
    """``add-fd``"""

    fdset_id: int


class BlockInfo(_Reply, frozen=True):
    """An entry of ``query-block``; ``qdev`` is the id or QOM path of the guest's device."""

    device: str
    removable: bool
    locked: bool
    qdev: str = ""
    inserted: BlockNodeInfo | None = None
    tray_open: bool | None = msgspec.field(name="tray_open", default=None)
    """None: the drive has no tray."""
    io_status: str = ""


class MigrationRam(_Reply, frozen=True):
    """Progress of the memory in bytes; ``mbps`` is 10⁶ bit/s, ``dirty_pages_rate`` pages/s."""

    transferred: int
    remaining: int
    total: int
    mbps: float = 0.0
    dirty_pages_rate: int = 0
    dirty_sync_count: int = 0
    page_size: int = 0


class MigrationInfo(_Reply, frozen=True):
    """``query-migrate``; ``status`` is empty when no migration ever began."""

    status: str = ""
    ram: MigrationRam | None = None
    total_time: int | None = None
    downtime: int | None = None
    expected_downtime: int | None = None
    setup_time: int | None = None
    cpu_throttle_percentage: int | None = None
    error_desc: str = ""
    blocked_reasons: list[str] = msgspec.field(default_factory=list)


class MigrationCapability(_Reply, frozen=True):
    """An entry of ``query-migrate-capabilities``"""

    capability: str
    state: bool


class JobInfo(_Reply, frozen=True):
    """An entry of ``query-jobs``; progress is in units of the job's own."""

    id: str
    type: str
    status: str
    current_progress: int
    total_progress: int
    error: str = ""


class BlockJobInfo(_Reply, frozen=True):
    """An entry of ``query-block-jobs``; ``device`` is the job's id."""

    device: str
    type: str
    len: int
    offset: int
    busy: bool
    paused: bool
    ready: bool
    speed: int
    status: str
    io_status: str = ""
    error: str = ""


class ShutdownInfo(_Reply, frozen=True):
    """The events SHUTDOWN and RESET: whether the guest asked for it, and why it came."""

    guest: bool
    reason: str = ""


class MigrationChange(_Reply, frozen=True):
    """The event MIGRATION"""

    status: str


class JobStatusChange(_Reply, frozen=True):
    """The event JOB_STATUS_CHANGE"""

    id: str
    status: str


class PortChange(_Reply, frozen=True):
    """The event VSERPORT_CHANGE: a program in the guest opened or closed a port."""

    id: str
    open: bool
