"""Lines never seen before: made of the table of options, with values that people write or any."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.qemu import machines
from tests.qemu.legacy import anything, lines
from wirt.errors import WirtError
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.options import OPTIONS
from wirt.qemu.legacy.translate import todays_line, translate
from wirt.qemu.runtime import Runtime

QUIET = settings(
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=list(HealthCheck),
)
STARTED = 20
RUNTIME = Runtime(
    "tcg",
    "/here",
    lambda name: f"/run/{name[:20]}",
    overlays={index: f"/overlay{index}" for index in range(20)},
    attended=True,
    sandbox=False,
)


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_any_words_are_a_line_or_refused_in_words(version):
    capabilities = machines.recorded(version)

    @QUIET
    @given(anything.mad() | anything.sane())
    def attempt(words):
        translation = translate(words, Facts(), capabilities)
        assert all(note.why for note in translation.refused)
        assert translation.machine or translation.refused or translation.query
        with contextlib.suppress(WirtError):
            todays_line(translation, RUNTIME, capabilities, "qemu")

    attempt()


def test_the_table_names_every_option_once_and_says_what_it_meant():
    names = [option.name for option in OPTIONS]
    assert len(names) == len(set(names)) > 150
    assert all(option.meaning and option.since for option in OPTIONS)
    gone = [option for option in OPTIONS if option.act.__name__ in {"drop", "refuse"}]
    assert all(option.why for option in gone)


@pytest.mark.needs_qemu
def test_qemu_takes_what_was_translated(qemu):
    binary, capabilities = qemu
    outcomes = []

    @seed(20091)
    @settings(QUIET, max_examples=STARTED, phases=[Phase.generate])
    @given(anything.sane())
    def attempt(words):
        base = Path(tempfile.mkdtemp(prefix="wirt-l"))
        try:
            host = lines.Host(base)
            translation = lines.translated(words, host, capabilities)
            if translation.machine is None:
                outcomes.append("refused")
                return
            line = lines.line_for(translation, base, capabilities, binary)
            host.furnish(translation.machine, line)
            with lines.started(line, base):
                outcomes.append("started")
        finally:
            shutil.rmtree(base)

    attempt()
    assert outcomes.count("started") > STARTED // 3
