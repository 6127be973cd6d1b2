"""The program ``kvm-img``, and ``qemu-img`` where it is linked so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from wirt.cli.kvm_img.failure import Done, Failure, Misuse, failure_of, program, report
from wirt.cli.kvm_img.getopt import Grammar, parse_words
from wirt.cli.loading import load_msgspec
from wirt.errors import WirtError

COMMANDS = (
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
    "map", "measure", "snapshot", "rebase", "resize",
)  # fmt: skip
_GRAMMAR = Grammar("hVT:", {"help": "h", "version": "V", "trace": "T:"})
_INTERRUPTED, _DEFECT = 130, 70


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    _set_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name need not be text.
            stream.reconfigure(errors="surrogateescape")
    try:
        code = _run(words)
    except Done:
        code = 0
    except Failure as failure:
        code = _failed(failure)
    except WirtError as error:
        code = _failed(failure_of(error))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        code = 1  # whoever read our output went away; see below
    except Exception as error:  # noqa: BLE001 - the last door: a user never sees a traceback
        report(f"a defect in wirt: {type(error).__name__}: {error}")
        code = _DEFECT
    try:
        sys.stdout.flush()
    except OSError:
        # Whoever read our output went away: what is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _failed(failure: Failure) -> int:
    report(failure.message, hint=failure.hint)
    return failure.code


def _set_signals() -> None:
    """SIGTERM unwinds like Ctrl-C, so that what was begun is cleaned up."""

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, unwind)


def _run(words: Sequence[str]) -> int:
    if not words:
        raise Misuse("Not enough arguments")
    parsed = parse_words(words, _GRAMMAR, leading=True)
    for option, _ in parsed.options:
        if option == "h":
            _help()
        if option == "V":
            _version()
    if not parsed.operands:
        return 0
    command, *rest = parsed.operands
    if command not in COMMANDS:
        raise Misuse(f"Command not found: {command}")
    load_msgspec()
    module = import_module(f"wirt.cli.kvm_img.{command}")
    code: int = module.run(rest)
    return code


def _help() -> None:
    from wirt.cli.kvm_img.help import print_help

    print_help()


def _version() -> None:
    from wirt.cli.kvm_img.help import version_line

    print(version_line(program()))
    raise Done


if __name__ == "__main__":
    sys.exit(main())
