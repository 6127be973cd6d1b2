"""Decoding into a type for the first time: from many threads at once, and soon."""

import subprocess
import sys

import msgspec

from wirt.spec.disk import Disk
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic
from wirt.store.record import Record
from wirt.store.states import Manifest

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


def structs_within(kind, found):
    """Collect the structs that ``kind`` is made of."""
    if isinstance(kind, msgspec.inspect.StructType):
        if kind.cls in found:
            return
        found.add(kind.cls)
        for field in kind.fields:
            structs_within(field.type, found)
    for name in ("types", "item_types"):
        for part in getattr(kind, name, None) or ():
            structs_within(part, found)
    for name in ("item_type", "key_type", "value_type", "type"):
        if hasattr(kind, name):
            structs_within(getattr(kind, name), found)


def test_no_annotation_of_a_state_or_a_record_is_left_to_msgspec_to_compile():
    found = set()
    for kind in (Manifest, Record):
        structs_within(msgspec.inspect.type_info(kind), found)
    assert {Manifest, Record, Machine, Disk, Nic} <= found
    texts = {
        kind: [v for v in kind.__annotations__.values() if isinstance(v, str)] for kind in found
    }
    assert not any(texts.values()), texts
