"""wirt edit"""

from __future__ import annotations

import argparse
import os
import tempfile

from wirt.cli.arguments import add_machine, example
from wirt.cli.output import print_json, say, warn
from wirt.errors import SpecError, UsageError, WirtError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_machine(parser)
    example(parser, "wirt edit web", "EDITOR=nano wirt edit web")


def run(args: argparse.Namespace) -> int:
    """Open the description in $VISUAL or $EDITOR, check it, and store it if it is right."""
    from wirt.vm.context import Context
    from wirt.vm.edit import read, replace

    context = Context(say=say)
    before = read(context, args.name)
    with tempfile.NamedTemporaryFile(
        "w+", prefix=f"{args.name}-", suffix=".toml", delete=False
    ) as f:
        f.write(before)
    after = _edited(f.name)
    if after == before:
        os.unlink(f.name)
        print("nothing changed")
        return 0
    try:
        restart = replace(context, args.name, after, expected=before)
    except WirtError as error:
        raise _kept(error, f.name) from error
    os.unlink(f.name)
    if args.json:
        print_json({"name": args.name, "restart_needed": restart})
    elif restart:
        print(f"{args.name}: takes effect at: wirt restart {args.name}")
    return 0


def _edited(path: str) -> str:
    import shlex
    import subprocess

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), path], check=False).returncode
    except OSError as error:
        os.unlink(path)
        raise UsageError(
            f"the editor {editor!r} cannot be started: {error.strerror}", hint="set EDITOR"
        ) from error
    if code != 0:
        warn(f"your text is kept in {path}")
        raise UsageError(f"the editor {editor!r} ended with {code}", hint="nothing was changed")
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _kept(error: WirtError, path: str) -> WirtError:
    hint = f"your text is kept in {path}; nothing was changed"
    if isinstance(error, SpecError):
        return SpecError(
            error.problem, key=error.key, file=path, line=error.line,
            hint=f"{error.hint}; {hint}" if error.hint else hint,
        )  # fmt: skip
    error.hint = hint
    return error
