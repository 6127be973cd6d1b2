"""The program as its users type it: help, typos, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from wirt.cli.table import FAMILIES, first_words, verbs
from wirt.errors import NoSpace, NotFound, SpecError, UsageError


def wirt(*words, home, **options):
    return subprocess.run(
        [sys.executable, "-m", "wirt", *words],
        env={**os.environ, "WIRT_HOME": str(home)},
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def test_help_lists_every_verb(tmp_path):
    done = wirt("--help", home=tmp_path)
    assert done.returncode == 0
    assert all(f"  {word} " in done.stdout for word in first_words())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_help_of_a_family_lists_its_verbs(family, tmp_path):
    done = wirt(family, "--help", home=tmp_path)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb, _ in FAMILIES[family])
    assert wirt(family, home=tmp_path).returncode == 2
    typo = wirt(family, "lsx", home=tmp_path)
    assert typo.returncode == UsageError.exit_code
    assert f"wirt {family}" in typo.stderr


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_has_help_with_an_example(verb, tmp_path):
    done = wirt(*verb.split(), "--help", home=tmp_path)
    assert done.returncode == 0
    assert f"wirt {verb}" in done.stdout.split("examples:")[1]


def test_help_imports_nothing_heavy(tmp_path):
    code = "import sys; from wirt.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "argparse", "msgspec", "subprocess", "tomllib", "numpy", "rich"}


@pytest.mark.parametrize("words", [["stop", "no", "none"], ["snapshots", "no", "--rm", "x", "y"]])
def test_errors_of_several_are_told_to_programs_too(tmp_path, words):
    done = wirt(*words, "--json", home=tmp_path)
    assert done.returncode == NotFound.exit_code
    told = [json.loads(line)["error"] for line in done.stderr.splitlines()]
    assert [error["exit_code"] for error in told] == [NotFound.exit_code] * 2


@pytest.mark.parametrize("words", [["--help"], ["schema"], ["ls", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_is_no_defect(tmp_path, words, unbuffered):
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wirt", *words],
            env={**os.environ, "WIRT_HOME": str(tmp_path), "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == NoSpace.exit_code, done.stderr
    assert "No space left" in done.stderr
    assert "defect" not in done.stderr


def test_closed_streams_are_nobodys(tmp_path):
    """Files that a command opens do not become its output, nor that of what it starts."""
    program = f"{sys.executable} -m wirt schema"
    for closed in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
        line = f"{program} {closed}"
        done = subprocess.run(
            ["sh", "-c", line], env={**os.environ, "WIRT_HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
    assert wirt("schema", home=tmp_path).stdout.startswith("{")


INTERRUPT = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.argv[1] = ""
            signal.raise_signal(signal.SIGINT)

from wirt.cli.main import main
sys.meta_path.insert(0, Interrupting())
sys.exit(main(["create", "m", "--no-net", "--memory", "64M"]))
"""


@pytest.mark.parametrize("module", ["math", "datetime", "wirt.cli.commands.create"])
def test_an_interrupted_import_ends_the_command_and_nothing_worse(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, module],
        env={**os.environ, "WIRT_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "wirt: interrupted\n")


def test_run_imports_nothing_that_only_a_boot_needs():
    """What a warm run waits for before its fork starts."""
    code = "import sys, wirt.cli.main, wirt.cli.commands.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    only_for_boots = {
        "wirt.catalog.build", "wirt.catalog.seed", "wirt.image.create", "wirt.image.open",
        "wirt.image.formats.qcow2.image", "wirt.vm.execute", "wirt.vm.wait",
        "logging", "secrets", "tempfile",
    }  # fmt: skip
    assert only_for_boots & set(done.stdout.split()) == set()


def test_listing_imports_nothing_heavy(tmp_path):
    code = "import sys; from wirt.cli.main import main; main(['ls', '--json']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WIRT_HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "tomllib", "numpy", "rich", "http.client", "cryptography"}


def test_a_typo_is_answered_with_the_nearest_verb(tmp_path):
    done = wirt("strat", "web", home=tmp_path)
    assert done.returncode == UsageError.exit_code
    assert "wirt start" in done.stderr


def test_an_error_is_one_line_and_a_hint_and_no_traceback(tmp_path):
    done = wirt("start", "nobody", home=tmp_path)
    assert done.returncode == NotFound.exit_code
    assert done.stderr.splitlines()[0] == "wirt: there is no machine 'nobody'"
    assert done.stderr.splitlines()[1].startswith("  try: ")
    assert "Traceback" not in done.stderr
    assert "Traceback" in wirt("start", "nobody", "--debug", home=tmp_path).stderr


def test_with_json_an_error_is_json(tmp_path):
    done = wirt("show", "nobody", "--json", home=tmp_path)
    error = json.loads(done.stderr)["error"]
    assert error["exit_code"] == done.returncode == NotFound.exit_code


def test_a_wrong_option_is_a_usage_error(tmp_path):
    done = wirt("ls", "--nonsense", home=tmp_path)
    assert done.returncode == UsageError.exit_code
    assert "wirt ls --help" in done.stderr


@pytest.mark.parametrize("words", [("-m", "1X"), ("-p", "80"), ("--set", "memry=1"), ("-m", "-5")])
def test_wrong_values_are_named(words, tmp_path):
    done = wirt("create", "x", *words, home=tmp_path)
    assert done.returncode in {UsageError.exit_code, SpecError.exit_code}
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vms" / "x").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--no-net", "-p", "8080:80"),
        ("--no-net", "--set", 'nics=[{model="e1000"}]'),
        ("-p", "8080:80", "--set", 'nics=[{model="e1000"}]'),
    ],
)
def test_cards_are_said_in_one_way(words, tmp_path):
    done = wirt("create", "a", *words, home=tmp_path)
    assert done.returncode == UsageError.exit_code
    assert "say which cards there are" in done.stderr


def test_names_of_guests_do_nothing_to_a_terminal():
    from wirt.cli.output import printable

    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"


def test_a_log_is_made_harmless():
    from wirt.cli.commands.logs import _harmless

    assert _harmless(b"a\x1b[31mred\x1b]0;title\x07b\rc\n\x9b2J") == b"aredb\rc\n2J"


def test_check_reports_every_problem(tmp_path):
    (tmp_path / "m.toml").write_text('name = "x"\nmemroy = 1\n[cpu]\nvcpus = "a"\n')
    done = wirt("check", str(tmp_path / "m.toml"), home=tmp_path)
    assert done.returncode == SpecError.exit_code
    assert len(done.stdout.splitlines()) == 2
    assert ":2: memroy" in done.stdout


def test_the_output_may_go_to_a_reader_that_leaves(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m wirt schema | head -c 10"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert len(done.stdout) == 10
    assert "Traceback" not in done.stderr


def test_the_exported_names_are_those_of_the_stub():
    import wirt

    assert [name for name in wirt.__all__ if getattr(wirt, name, None) is None] == []
    with open(os.path.join(os.path.dirname(wirt.__file__), "__init__.pyi")) as file:
        stub = file.read()
    assert all(name in stub for name in wirt.__all__)
