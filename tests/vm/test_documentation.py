"""The Python examples of README, tutorial and docstring run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wirt

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("guest")]

ROOT = Path(__file__).parents[2]


def examples():
    """Return the distinct Python examples: the pages share some."""
    found = {}
    for page in ("README.md", "docs/tutorial/first-machine.md"):
        for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            found.setdefault(code, page)
    docstring = re.search(r"::\n\n(.*?)\n\n\S", wirt.__doc__, re.DOTALL)[1]
    found["\n".join(line.removeprefix("    ") for line in docstring.splitlines())] = "docstring"
    return found


@pytest.mark.parametrize("code", list(examples()), ids=list(examples().values()))
def test_an_example_runs_as_it_stands(code, wirt_context):
    env = {**os.environ, "WIRT_HOME": wirt_context.home.root}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A machine that booted is called guest, one that was forked has a name of its own.
    assert re.match(r"Linux (guest|run-\w+) ", done.stdout)
