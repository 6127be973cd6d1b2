"""What must stay light: no numpy where a small image is handled."""

import subprocess
import sys

SCRIPT = """
import sys
from tests.image.qcow2.support import Memory
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT
storage = Memory()
FORMAT.create(storage, 1 << 40, {})
image = FORMAT.open(storage, OpenOptions(writable=True))
image.info()
image.pwrite(0, b"x" * 100_000)
image.write_zeroes(1 << 30, 1 << 20)
image.resize(2 << 40)
image.snapshot_create("s")
image.snapshots()
image.bitmaps()
image.check()
image.flush()
list(image.extents(0, 1 << 30))
heavy = {"numpy", "subprocess", "asyncio", "cryptography", "zstandard"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_small_images_need_no_heavy_module():
    program = SCRIPT.replace("from tests.image.qcow2.support import Memory", _memory())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _memory():
    """A Memory storage without pytest, which imports much by itself."""
    return """
from wirt.image.base import Storage
class Memory(Storage):
    name, read_only = "memory", False
    def __init__(self): self.data = bytearray()
    def size(self): return len(self.data)
    def pread(self, offset, length): return bytes(self.data[offset : offset + length])
    def pwrite(self, offset, data):
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data
    def truncate(self, size): self.data.extend(bytes(max(0, size - len(self.data))))
    def flush(self): pass
    def close(self): pass
"""
