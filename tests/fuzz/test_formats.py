"""A short run of the fuzzer of all formats (``make fuzz`` is the long one), and of its traps."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.formats import hunt
from tests.fuzz.seeds import file_formats

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_damaged_images_of_every_format_keep_within_their_limits():
    findings, figures = hunt(0, 400)
    assert findings == []
    assert set(figures) == {known.name for known in file_formats()}


TRAPS = {
    "time": ("while True: pass", "over a second of CPU time"),
    "memory": ("bytearray(200 << 20)", "MemoryError"),
    "files": ("open('/etc/hostname').close()", "opened /etc/hostname"),
    "errors": ("raise ValueError('escaped')", "ValueError: escaped"),
}


@pytest.mark.parametrize(("fault", "finding"), TRAPS.values(), ids=TRAPS)
def test_a_parser_that_breaks_the_rules_is_caught(fault, finding, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from tests.fuzz import formats\n"
        "from tests.fuzz.seeds import Seed\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "def make(directory):\n"
        "    path = directory / 'seed' / 'disk'; path.parent.mkdir(parents=True)\n"
        "    path.write_bytes(b'x' * 512)\n"
        "    return [Seed(path, 'raw')]\n"
        "def exercise(path, name, dice):\n"
        f"    {fault}\n"
        "    return 1\n"
        "formats.make_seeds, formats.exercise = make, exercise\n"
        "formats._import_all = lambda seeds: None\n"
        "formats.work(place, 0, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told = done.stdout
    if done.returncode == -27:  # SIGPROF: what the parent would say of it
        told += "over a second of CPU time"
    assert finding in told, done.stdout + done.stderr
