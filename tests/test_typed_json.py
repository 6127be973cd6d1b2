"""Decoding into a type for the first time, from many threads at once."""

import subprocess
import sys

CODE = """
import sys, threading
import msgspec
from wirt.typed_json import decode

sys.setswitchinterval(1e-6)
for round_ in range(40):
    inner = msgspec.defstruct("Inner", [("number", int, 0)])
    kind = msgspec.defstruct("Kind", [("inner", inner), ("more", list[inner], [])])
    start = threading.Barrier(8)

    def work():
        start.wait()
        assert decode(b'{"inner": {"number": 7}}', kind).inner.number == 7

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("well")
"""


def test_threads_that_meet_a_type_at_once_do_not_crash():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout == "well\n", done.stderr
    assert done.returncode == 0
