"""SSH host keys, made on the host: under TCG a guest would spend ten seconds on them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from wirt.catalog import child

_KINDS = {"ed25519": (), "ecdsa": ("-b", "256")}


def make_host_keys(*, comment: str = "wirt") -> dict[str, bytes]:
    """Return new keys as the files of a guest: absolute path → content.

    Private files must get mode 0600, ``.pub`` files 0644. Raises MissingDependency without
    ssh-keygen.
    """
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="wirt-keys-") as directory:
        for kind, options in _KINDS.items():
            key = Path(directory) / f"ssh_host_{kind}_key"
            child.run(
                [
                    "ssh-keygen",
                    "-q",
                    "-t",
                    kind,
                    *options,
                    "-N",
                    "",
                    "-C",
                    comment,
                    "-f",
                    os.fspath(key),
                ],
                what="ssh-keygen",
            )
            for path in (key, key.with_suffix(".pub")):
                files[f"/etc/ssh/{path.name}"] = path.read_bytes()
    return files
