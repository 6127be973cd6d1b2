"""wirt doctor"""

from __future__ import annotations

import argparse
import sys

from wirt.cli.arguments import example
from wirt.cli.output import print_json, printable
from wirt.host.doctor import examine, worst
from wirt.host.finding import Finding
from wirt.vm.context import Context

_SIGNS = {"ok": "ok", "info": "--", "warn": "!!", "fail": "XX"}
_COLOURS = {"ok": "32", "info": "2", "warn": "33", "fail": "31"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt doctor", "wirt doctor --json | jq '.[] | select(.status == \"fail\")'")


def run(args: argparse.Namespace) -> int:
    """Report what this host can do; the exit code is 1 if no machine can run."""
    home = Context().home
    findings = examine(cache_dir=home.cache, places=(home.root,), sockets=home.runtime_base)
    if args.json:
        print_json(findings)
    else:
        for finding in findings:
            _print(finding)
    return 1 if worst(findings) == "fail" else 0


def _print(finding: Finding) -> None:
    sign = _SIGNS[finding.status]
    if sys.stdout.isatty():
        sign = f"\x1b[{_COLOURS[finding.status]}m{sign}\x1b[0m"
    print(f"{sign} {printable(finding.title)}: {printable(finding.detail)}")
    if finding.cure and finding.status != "ok":
        print(f"     cure: {printable(finding.cure)}")
