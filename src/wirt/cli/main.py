"""The program ``wirt``: finds the verb, runs it, and turns errors into one line and a code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from wirt.cli.table import FAMILIES, GROUPS, first_words, verbs
from wirt.errors import NoSpace, UsageError, WirtError
from wirt.version import VERSION

INTERRUPTED = 130
SIGPIPE_CODE = 128 + 13
INTERNAL_ERROR = 70
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def program() -> None:
    """The whole process: what was imported need not be taken apart at its end."""
    from wirt.cli.loading import collect_rarely

    collect_rarely()
    _open_closed_streams()
    code = main()
    import threading

    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed: no file of ours must take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    """Run ``wirt`` with ``argv`` (without the program's name); return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    _unwind_on_sigterm()
    try:
        return _flushed(_run(words))
    except WirtError as error:
        return _report(error, words)
    except KeyboardInterrupt:
        print("wirt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # its reader went away
        return SIGPIPE_CODE
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _internal_error(words)
        _drop_output()  # it may be what is full
        what = error.filename or "the output, or a file"
        return _report(NoSpace(f"{what}: {error.strerror}", hint="free space: df -h"), words)
    except Exception:  # noqa: BLE001 - the last door: a user never sees a traceback unasked
        return _internal_error(words)


def _drop_output() -> None:
    """What is left to print has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unwind_on_sigterm() -> None:
    """SIGTERM unwinds like Ctrl-C, so that what was begun is cleaned up."""
    import signal

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, unwind)


def _flushed(code: int) -> int:
    sys.stdout.flush()
    return code


def _run(words: list[str]) -> int:
    words = _without_leading_options(words)
    if not words or words[0] in {"-h", "--help", "help"}:
        if len(words) > 1 and words[1] in first_words():
            return _run([*words[1:], "--help"])
        print(overview())
        return 0 if words else 2
    if words[0] in {"-V", "--version"}:
        print(f"wirt {VERSION}")
        return 0
    if words[0] in FAMILIES:
        return _family(words[0], words[1:])
    return _verb(words[0], words[1:])


def _family(family: str, words: list[str]) -> int:
    """``wirt img convert``: the second word is the verb."""
    words = _without_leading_options(words)
    if not words or words[0] in {"-h", "--help"}:
        print(family_overview(family))
        return 0 if words else 2
    return _verb(f"{family} {words[0]}", words[1:])


def _without_leading_options(words: list[str]) -> list[str]:
    """``wirt --debug ls`` is ``wirt ls --debug``."""
    if words and words[0] in {"--debug", "--json", "-q", "--quiet"} and len(words) > 1:
        return [words[1], words[0], *words[2:]]
    return words


def _verb(verb: str, words: list[str]) -> int:
    if verb not in verbs():
        raise _unknown(verb)
    from importlib import import_module

    from wirt.cli.arguments import make_parser
    from wirt.cli.loading import load_msgspec

    load_msgspec()
    module = import_module(f"wirt.cli.commands.{verb.replace('-', '_').replace(' ', '.')}")
    parser = make_parser(verb, verbs()[verb])
    module.configure(parser)
    words, command = _split(words)
    args = parser.parse(words)
    args.command = [*getattr(args, "command", []), *command]
    if args.quiet:
        os.environ["WIRT_QUIET"] = "1"
    code: int = module.run(args)
    return code


def _unknown(verb: str) -> UsageError:
    import difflib

    family = verb.split(" ", maxsplit=1)[0] if " " in verb else ""
    if family:
        known = [known_verb for known_verb in verbs() if known_verb.startswith(f"{family} ")]
    else:
        known = [*first_words(), *verbs()]
    near = difflib.get_close_matches(verb, known, n=1)
    return UsageError(
        f"there is no verb {verb[:40]!r}",
        hint=f"wirt {near[0]}" if near else f"{f'wirt {family}'.strip()} --help lists them",
    )


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands behind ``--`` is a command for the guest, with options of its own."""
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _report(error: WirtError, words: list[str]) -> int:
    from wirt.cli.output import print_error

    words, _ = _split(words)
    if "--debug" in words:
        import traceback

        traceback.print_exc()
    print_error(error, as_json="--json" in words)
    return error.exit_code


def _internal_error(words: list[str]) -> int:
    error = sys.exc_info()[1]
    if "--debug" in words:
        import traceback

        traceback.print_exc()
    print(f"wirt: a defect in wirt: {type(error).__name__}: {error}", file=sys.stderr)
    print("  try: the same with --debug, and report what it prints", file=sys.stderr)
    return INTERNAL_ERROR


def overview() -> str:
    """Return the text of ``wirt --help``."""
    lines = [
        "wirt: virtual machines on this host, without a daemon",
        "",
        "  wirt build debian:12                  build a guest image",
        "  wirt run debian:12 -- uname -a        run a command in a fresh machine",
        "  wirt run debian:12 --name web -p 8080:80",
        "",
        "usage: wirt VERB [OPTIONS]; wirt VERB --help explains one",
    ]
    for title, members in GROUPS:
        lines += ["", f"{title}:"]
        lines += [f"  {verb:<12}{text}" for verb, text in members]
    lines += ["", "every verb takes --json, --quiet and --debug; wirt --version"]
    return "\n".join(lines)


def family_overview(family: str) -> str:
    """Return the text of ``wirt img --help`` and its like."""
    lines = [f"wirt {family}: {first_words()[family]}", ""]
    lines += [f"  {verb:<12}{text}" for verb, text in FAMILIES[family]]
    lines += ["", f"usage: wirt {family} VERB [OPTIONS]; wirt {family} VERB --help explains one"]
    return "\n".join(lines)


if __name__ == "__main__":
    program()
