"""wirt's own ssh key: one for each home, made when it is first needed."""

from __future__ import annotations

import contextlib
import os
import time

from wirt.host.process import run
from wirt.store.layout import private_directory
from wirt.store.locks import try_lock
from wirt.vm.context import Context


def own_key(context: Context) -> str:
    """Return the path of the private key. Raises MissingDependency, HostError."""
    directory = private_directory(os.path.join(context.home.root, "ssh"))
    key = os.path.join(directory, "id_ed25519")
    while not os.path.exists(f"{key}.pub"):
        lock = try_lock(os.path.join(directory, "lock"))
        if lock is None:
            time.sleep(0.05)
            continue
        with contextlib.closing(os.fdopen(lock)):
            if not os.path.exists(f"{key}.pub"):
                _make(key)
    return key


def _make(key: str) -> None:
    """Make the pair aside and publish the public half last: it says that both are there."""
    fresh = f"{key}.new"
    for path in (fresh, f"{fresh}.pub"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "wirt", "-f", fresh])
    os.rename(fresh, key)
    os.rename(f"{fresh}.pub", f"{key}.pub")


def public_key(context: Context) -> str:
    """Return the public key as one line."""
    with open(f"{own_key(context)}.pub", encoding="ascii") as file:
        return file.read(4096).strip()
