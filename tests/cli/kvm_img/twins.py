"""The same command to qemu-img and to kvm-img, each in its own copy of the same files."""

import contextlib
import difflib
import filecmp
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from wirt.cli.kvm_img.main import main

_VARYING = (
    (re.compile(r'(disk size: |"actual-size": ).*'), r"\1SIZE"),
    (re.compile(r'(cid: |"cid": )\d+'), r"\1CID"),
    (re.compile(r'(uuid: |"uuid": ")[-0-9a-f]+'), r"\1UUID"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r'("date-n?sec": )\d+'), r"\1DATE"),
    (re.compile(r"#block\d+"), "#block"),
    (re.compile(r"Run completed in .*"), "Run completed"),
    (re.compile(r"( +\([0-9.]+/100%\)\r)+"), "PROGRESS "),
)


# On a busy host qemu-img may give up measuring how fast it derives keys.
_BUSY, _TRIES = b"accurate CPU usage", 50
_CHAINS = (
    ("top.qcow2", "overlay.qcow2 data.qcow2"),
    ("overlay.qcow2", "data.qcow2"),
    ("split.qcow2", "split.data"),
)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def normal(text):
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def difference(words, real, ours):
    lines = [f"{' '.join(words)}: exit code {real.code} and {ours.code}"]
    for one, other in ((real.out, ours.out), (real.err, ours.err)):
        lines += difflib.unified_diff(
            one.splitlines(), other.splitlines(), "qemu-img", "kvm-img", lineterm="", n=1
        )
    return "\n".join(lines)


def ask_qemu_img(folder, *words, program="qemu-img"):
    for _ in range(_TRIES):
        done = subprocess.run(
            [program, *words], cwd=folder, capture_output=True, timeout=120, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if _BUSY not in done.stderr:
            break
    return Answer(done.returncode, normal(done.stdout.decode()), normal(done.stderr.decode()))


def ask_kvm_img(folder, *words, monkeypatch):
    """Run the command in this process: a start of Python for each of hundreds is too slow."""
    out, err = io.StringIO(), io.StringIO()
    with monkeypatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(sys, "argv", ["qemu-img", *words])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
    return Answer(code, normal(out.getvalue()), normal(err.getvalue()))


class Twins:
    """Files made once by qemu-img and qemu-io, and two copies of them for each command."""

    def __init__(self, stage, work, monkeypatch):
        self.stage, self.work, self.monkeypatch = stage, work, monkeypatch
        self.real, self.ours = work / "real", work / "ours"
        for folder in (self.real, self.ours):
            folder.mkdir()

    def share(self):
        """Let both work on the files themselves: nothing will be written."""
        self.real = self.ours = self.stage

    def take(self, text):
        """Copy the files that a command names, and those that these name."""
        for folder in (self.real, self.ours):
            for name in os.listdir(self.stage):
                if name in text or any(name in more for key, more in _CHAINS if key in text):
                    words = ["cp", "-a", "--sparse=always", self.stage / name, folder]
                    subprocess.run(words, check=True, timeout=60)

    def make(self, *words, program="qemu-img"):
        """Run a command of QEMU's in both copies, to set a scene."""
        for folder in (self.real, self.ours):
            answer = ask_qemu_img(folder, *words, program=program)
            assert answer.code == 0, answer

    def ask(self, *words):
        """Run a command with both programs; all that they say must be the same."""
        real = ask_qemu_img(self.real, *words)
        ours = ask_kvm_img(self.ours, *words, monkeypatch=self.monkeypatch)
        assert ours == real, difference(words, real, ours)
        return ours

    def same_images(self):
        """All files that the two have must be the same disks, and sound."""
        names = set(os.listdir(self.real)) & set(os.listdir(self.ours))
        folders = (self.real, self.ours)
        for name in sorted(filter(self._changed, names)):
            facts = [ask_qemu_img(folder, "info", "--output=json", name) for folder in folders]
            assert facts[0] == facts[1], difference(("info", name), *facts)
            if facts[0].code:
                continue
            raws = [
                ask_qemu_img(folder, "convert", "-O", "raw", name, f"{name}.raw")
                for folder in folders
            ]
            assert raws[0] == raws[1], name
            if raws[0].code == 0:
                pair = [folder / f"{name}.raw" for folder in folders]
                assert filecmp.cmp(*pair, shallow=False), name
            check = ask_qemu_img(self.ours, "check", name)
            assert check.code == ask_qemu_img(self.real, "check", name).code, (name, check)

    def _changed(self, name):
        before = self.stage / name
        return not before.exists() or any(
            not filecmp.cmp(before, folder / name, shallow=False)
            for folder in (self.real, self.ours)
        )

    def clean(self):
        shutil.rmtree(self.work, ignore_errors=True)
