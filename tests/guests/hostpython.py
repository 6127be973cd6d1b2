"""This host's Python and wirt on a disk, for guests that have neither: ``/py/run -m wirt …``.

The interpreter comes with its own libraries and loader, so that the guest may be any Linux; a
kernel and a shell will do.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

import wirt

MOUNT = "/py"
# The last is what another process of the suite compiles just now.
_UNUSED = ("test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "unittest",
           "pydoc_data", "distutils", "site-packages", "dist-packages", "config-*", "_test*",
           "_tkinter*", "_sqlite3*", "*.a", "*.pyc.*")  # fmt: skip
RUN = f"""#!/bin/sh
export PYTHONHOME={MOUNT} PYTHONPATH={MOUNT}/site WIRT_HOME=/tmp/wirt
exec {MOUNT}/libraries/loader --library-path {MOUNT}/libraries {MOUNT}/python "$@"
"""


def make_disk(path: Path, more: Mapping[str, bytes]) -> None:
    """Write an ext4 disk without partitions; ``more`` are further files on it."""
    tree = path.with_name(f"{path.name}.tree")
    standard = Path(sysconfig.get_path("stdlib"))
    unused = shutil.ignore_patterns(*_UNUSED)
    shutil.copytree(standard, tree / "lib" / standard.name, ignore=unused)
    for package in (wirt, msgspec):
        source = Path(package.__file__).parent
        shutil.copytree(source, tree / "site" / source.name, ignore=unused)
    compileall.compile_dir(tree / "site", quiet=2)
    interpreter = Path(sys.executable).resolve()
    shutil.copy(interpreter, tree / "python")
    (tree / "libraries").mkdir()
    for library in _libraries([interpreter, *tree.rglob("*.so")]):
        shutil.copy(library, tree / "libraries")
        if library.name.startswith("ld-"):
            shutil.copy(library, tree / "libraries" / "loader")
    (tree / "run").write_text(RUN)
    (tree / "run").chmod(0o755)
    for name, content in more.items():
        (tree / name).write_bytes(content)
    _pack(tree, path)
    shutil.rmtree(tree)


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that they need, and the loader."""
    words = ["ldd", *map(os.fspath, programs)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)}


def _pack(tree: Path, path: Path) -> None:
    used = sum(file.lstat().st_size // 4096 + 1 for file in tree.rglob("*"))
    blocks = used * 5 // 4 + 4096
    words = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-d", str(tree)]
    subprocess.run([*words, str(path), str(blocks)], check=True, timeout=120)
