"""Becomes a QEMU, beside which a TPM runs that dies with it.

Run as ``python -I -S beside.py FD`` with its settings as JSON on descriptor FD, and only the
standard library. The TPM is a child, which asks the kernel to be killed when its parent ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

_PARENT = "@PARENT@"  # of wirt.host.process


def main() -> NoReturn:
    with open(int(sys.argv[1]), "rb") as file:
        settings = json.loads(file.read())
    qemu_pid = str(os.getpid())
    child = os.fork()
    if child == 0:
        _become_tpm(settings, qemu_pid)
    os.write(settings["pid_fd"], b"%d" % child)
    os.close(settings["pid_fd"])
    os.close(settings["tpm_fd"])
    os.execv(settings["line"][0], settings["line"])  # noqa: S606 - it becomes QEMU


def _become_tpm(settings: dict[str, Any], qemu_pid: str) -> NoReturn:
    try:
        line = [qemu_pid if word == _PARENT else word for word in settings["tpm_line"]]
        for fd in (settings["pid_fd"], *settings["qemu_fds"]):
            os.close(fd)
        os.chdir(settings["tpm_directory"])
        os.execv(line[0], line)  # noqa: S606 - and swtpm
    except OSError as error:
        os.write(2, f"the TPM cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    main()
