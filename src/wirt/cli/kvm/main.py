"""The program ``kvm``: a line of the old days runs as it did, and is QEMU's own process then."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from wirt.errors import WirtError

FAILED = 1
"""QEMU's own code for a line that it does not take."""
INTERRUPTED = 130
INTERNAL_ERROR = 70

HELP = """\
kvm: virtual machines by lines of QEMU and KVM, from 2007 to today

  kvm -m 512 -hda disk.img            run it, as it was meant when it was written
  kvm --explain -m 512 -hda disk.img  what each option meant, and the line of today
  kvm --explain --json …              the same for programs
  wirt adopt -- kvm …                 make a machine of wirt of it

man kvm tells more; kvm -help is QEMU's own help.
"""


def main() -> int:
    """Run the line; on success this process has become QEMU."""
    name = os.path.basename(sys.argv[0]) or "kvm"
    words = sys.argv[1:]
    try:
        return _run(name, words)
    except WirtError as error:
        return _complain(name, error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - the last door: a user never sees a traceback
        text = f"{type(error).__name__}: {error}"
        print(f"{name}: a defect in wirt: {text}", file=sys.stderr)
        return INTERNAL_ERROR


def _complain(name: str, error: WirtError) -> int:
    from wirt.cli.output import printable

    print(f"{name}: {printable(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"  try: {printable(error.hint)}", file=sys.stderr)
    return FAILED


def _run(name: str, words: list[str]) -> int:
    if words in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    from wirt.cli.loading import load_msgspec

    load_msgspec()
    if "--explain" in words:
        from wirt.cli.kvm.explain import explain

        as_json = "--json" in words
        rest = [word for word in words if word not in {"--explain", "--json"}]
        return explain([name, *rest], as_json=as_json)
    return run(name, words)


def run(name: str, words: Sequence[str]) -> int:
    """Translate the line and become QEMU. Returns only when that fails."""
    from wirt.vm.context import Context
    from wirt.vm.oldline import make_overlays, running, understand

    line = understand(Context(), [name, *words], strict=True)
    translation = line.translation
    if translation.refused:
        return _refuse(name, translation.refused)
    for warning in translation.warnings:
        _say(name, f"warning: {warning}")
    if translation.machine is None:
        return _become(line.argv())
    if translation.machine.accelerator != "tcg" and line.accelerator.name != "kvm":
        _say(name, f"warning: no KVM, so this is slow: {line.accelerator.reason}")
    overlays = make_overlays(translation.machine)
    line.display.hand_on()
    return _become(line.argv(running(translation.machine, overlays)))


def _refuse(name: str, notes: Sequence[object]) -> int:
    from wirt.cli.output import printable
    from wirt.qemu.legacy.note import Note

    for note in notes:
        if isinstance(note, Note):
            option = f"{note.option} {note.value}".strip()
            _say(name, f"{option}: {note.why}" if option else note.why)
            if note.today:
                print(f"  try: {printable(note.today)}", file=sys.stderr)
    return FAILED


def _say(name: str, text: str) -> None:
    from wirt.cli.output import printable

    print(f"{name}: {printable(text)}", file=sys.stderr)


def _become(line: Sequence[str]) -> int:
    """Replace this process by QEMU: exit code and signals are its own from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would keep that
    os.execv(line[0], list(line))  # noqa: S606 - this is what the program is for


if __name__ == "__main__":
    sys.exit(main())
