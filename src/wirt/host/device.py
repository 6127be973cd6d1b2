"""Devices of the host that machines use: networks, sockets to guests, pass-through."""

from __future__ import annotations

import os

from wirt.host.finding import Finding, Status
from wirt.host.kernel import module_cure, module_state, read_line

_IOMMU_GROUPS = "/sys/kernel/iommu_groups"


def devices() -> list[Finding]:
    """Examine devices; nothing is made with them."""
    return [
        _character("tun", "/dev/net/tun", "tun", "no taps: only user-mode networks and switches"),
        _bridge(),
        _character("vhost-net", "/dev/vhost-net", "vhost_net", "networks on taps are slower"),
        _character("vhost-vsock", "/dev/vhost-vsock", "vhost_vsock", "no sockets to guests"),
        _iommu(),
    ]


def _character(ident: str, path: str, module: str, without: str) -> Finding:
    """Examine a device by opening it, which by itself changes nothing."""
    status: Status = "warn" if ident == "tun" else "info"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        cure = "run wirt as root, or in a user namespace of your own"
        return Finding(ident, path, "info", f"not for this user: {without}", cure)
    except FileNotFoundError:
        return Finding(ident, path, status, f"absent: {without}", module_cure(module))
    except OSError as error:
        detail = f"{error.strerror}: {without}"
        return Finding(ident, path, status, detail, module_cure(module))
    return Finding(ident, path, "ok", "usable")


def _bridge() -> Finding:
    state = module_state("bridge")
    if state == "absent":
        detail = "not in this kernel: no networks on bridges"
        return Finding("bridge", "bridges", "warn", detail, module_cure("bridge"))
    words = "loaded" if state == "loaded" else "loaded when the first one is made"
    return Finding("bridge", "bridges", "ok", words)


def _iommu() -> Finding:
    groups = len(os.listdir(_IOMMU_GROUPS)) if os.path.isdir(_IOMMU_GROUPS) else 0
    if groups:
        return Finding("iommu", "IOMMU", "ok", f"{groups} groups: devices can be passed through")
    asked = "iommu=" in read_line("/proc/cmdline")
    cure = "switch VT-d or AMD-Vi on in the firmware setup"
    if not asked:
        cure += ", and boot with intel_iommu=on or amd_iommu=on"
    return Finding("iommu", "IOMMU", "info", "off: no device can be passed through", cure)
