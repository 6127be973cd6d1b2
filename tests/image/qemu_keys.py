"""qemu-img where it makes LUKS keys."""

import subprocess

_GAVE_UP = b"Unable to get accurate CPU usage"


def run_qemu_img(words: list[object]) -> subprocess.CompletedProcess[bytes]:
    """Run it; again when it gives up timing its key derivation.

    It compares CPU time with a clock for that, and fails at random on a busy machine.
    """
    while True:
        done = subprocess.run(
            ["qemu-img", *map(str, words)], check=False, capture_output=True, timeout=600
        )
        if _GAVE_UP not in done.stderr:
            return done
