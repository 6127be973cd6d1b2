"""``wirt diff``: which blocks differ, also while a guest writes.

The machines have no guest: their firmware runs, and the tests write through QEMU.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.vm.test_fork_faults import make, require_clean, require_running
from tests.vm.test_snapshots import qemu_io, write
from wirt.errors import Busy, ImageAccessDenied, NotFound, UsageError
from wirt.image.base import AllowLocalFiles
from wirt.image.open import open_image
from wirt.store.record import read_record
from wirt.vm import diff as module
from wirt.vm.chain import AsItsQemu, open_disk
from wirt.vm.create import Wish, create
from wirt.vm.diff import diff
from wirt.vm.forking.fork import fork
from wirt.vm.snapshot import snapshot
from wirt.vm.stop import stop
from wirt.vm.vm import Vm

pytestmark = [pytest.mark.needs_qemu]

CHANGED = ((65536, 65536),)


def ranges(found):
    return {disk.disk: disk.ranges for disk in found.disks}


def test_machines_and_snapshots_are_compared_whether_they_run_or_not(context, cli):
    make(context)
    write(context, "src", 1)
    snapshot(context, "src", "one")
    assert diff(context, "src:one", "src").identical
    write(context, "src", 2)
    fork(context, "src", ["new"])
    found = diff(context, "src:one", "src")
    assert ranges(found) == {"disk0": CHANGED}
    assert found.disks[0].bytes == 65536
    assert diff(context, "src", "new").identical
    write(context, "new", 1)
    assert ranges(diff(context, "src", "new")) == {"disk0": CHANGED}
    assert diff(context, "src:one", "new").identical
    done = cli("diff", "src", "new", "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert (said["first"], said["second"], said["identical"]) == ("src", "new", False)
    assert said["disks"][0]["ranges"] == [[65536, 65536]]
    assert said["disks"][0]["file_systems"][0]["note"] == "there is no ext4 file system"
    done = cli("diff", "src:one", "new")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"0x10000 65536" in cli("diff", "--blocks", "src", "new").stdout
    stop(context, "src", force=True)
    stop(context, "new", force=True)
    assert Vm("src", context).diff("new").disks[0].ranges == CHANGED
    create(context, "bare", None, Wish(settings={"memory": "64M", "disks": []}))
    [disk] = diff(context, "src", "bare").disks
    assert (disk.only_in, disk.sizes) == ("first", (8 << 20, 0))
    for wrong in ("none", "src:none", "0123456789abcdef"):
        with pytest.raises(NotFound):
            diff(context, "src", wrong)
    with pytest.raises(UsageError):
        diff(context, "src", "src")
    require_clean(context)


def test_a_disk_that_is_written_meanwhile_is_read_again(context, monkeypatch):
    make(context)
    snapshot(context, "src", "one")
    compare, written = module._compare, []

    def writing(*sides, **options):
        found = compare(*sides, **options)
        if len(written) < most:
            written.append(1)
            qemu_io(context, "src", f"write -P {len(written)} 64k 64k")
        return found

    monkeypatch.setattr(module, "_compare", writing)
    most = 2
    assert ranges(diff(context, "src:one", "src")) == {"disk0": CHANGED}
    assert len(written) == 2
    most = 1000
    with pytest.raises(Busy, match="all the time") as caught:
        diff(context, "src:one", "src")
    assert "wirt pause src" in caught.value.hint
    require_running(context)
    require_clean(context)


@pytest.mark.needs_root
def test_a_qemu_that_was_taken_over_gets_no_file_of_roots_read(context, tmp_path):
    make(context)
    stop(context, "src", force=True)
    paths = context.home.vm("src")
    record = read_record(paths.record)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    secret.chmod(0o600)
    gate = AsItsQemu(context.home, record.uid, record.group)
    image = f"{paths.disks}/disk0.qcow2"
    with open_image(image, format="qcow2", writable=True, gate=AllowLocalFiles(),
                    with_backing=False) as disk:  # fmt: skip
        for name in (str(secret), f"{paths.disks}/other"):
            disk.set_backing(name, "raw")
            disk.flush()
            with pytest.raises(ImageAccessDenied):
                open_disk(image, "qcow2", gate, running=True)
    link = f"{paths.disks}/link"
    os.symlink(secret, link)
    with pytest.raises(ImageAccessDenied):
        open_disk(link, "raw", gate)
    os.unlink(link)
    require_clean(context)
