"""The Trusted Platform Module: a device of QEMU's, and the swtpm behind it.

QEMU gives swtpm the power switch (the control channel) and the guest's commands; when it
migrates, the TPM's whole state is part of the stream.
"""

from __future__ import annotations

from wirt.qapi.value import Argument, QapiObject, device
from wirt.qemu.runtime import Runtime, unix_path
from wirt.spec.machine import Machine

SOCKET = "tpm"
"""The socket on which swtpm listens for a QEMU that is not given a connection."""

_MODELS = {"1.2": "tpm-tis", "2.0": "tpm-crb"}


def tpm(machine: Machine, runtime: Runtime) -> list[Argument]:
    """Return the TPM and the connection to swtpm."""
    wanted = machine.tpm
    if wanted.version == "none":
        return []
    channel: QapiObject = {"backend": "socket", "id": "tpm-channel"}
    if runtime.tpm_fd >= 0:
        channel["fd"] = str(runtime.tpm_fd)
    else:
        channel["path"] = unix_path(runtime.socket(SOCKET))
    model = _MODELS[wanted.version] if wanted.model == "auto" else wanted.model
    return [
        Argument("-chardev", channel),
        Argument("-tpmdev", {"type": "emulator", "id": "tpm-state", "chardev": "tpm-channel"}),
        device({"driver": model, "id": "tpm", "tpmdev": "tpm-state"}),
    ]
