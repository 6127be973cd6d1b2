"""A real guest's disk, converted again and again, still boots.

Every step is made from the step before, so what the last two boots show holds for all;
with WIRT_TEST_LONG=1 the guest boots after each of them.
"""

import os

import pytest

from wirt.image.base import AllowLocalFiles
from wirt.image.commit import commit
from wirt.image.compare import compare
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.open import open_image

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_guest,
    pytest.mark.xdist_group("guest"),
]

_SUMS = "/var/lib/dpkg/info/dash.md5sums"
STEPS = {
    "zlib": ConvertSettings(compressed=True),
    "zstd": ConvertSettings(compressed=True, options={"compression_type": "zstd"}),
    "subclusters": ConvertSettings(options={"extended_l2": "on", "cluster_size": "128k"}),
    "data file": None,
    "chain": ConvertSettings(),
}


def test_a_guest_boots_after_each_conversion(guest_image, guests, tmp_path, monkeypatch):
    emulator = guests["emulator"]
    monkeypatch.chdir(tmp_path)  # QEMU looks for a data file's name from where it runs
    source, name = guest_image.disk, guest_image.record.format

    def converted(step, target_name, settings):
        target = tmp_path / step.replace(" ", "-")
        with open_image(str(source), format=name, gate=AllowLocalFiles()) as image:
            convert([image], str(target), target_name, settings)
        return target

    def boots(disk, disk_format, step):
        place = tmp_path / f"run-{step}"
        place.mkdir()
        arguments = emulator.kernel_arguments(guest_image)
        with emulator.boot(place, disk, *arguments, disk_format=disk_format) as agent:
            # A damaged block under the shell would show here, if not before.
            found = emulator.sh(agent, "cd / && md5sum -c --quiet --ignore-missing " + _SUMS)
            assert found == ""

    for step, chosen in STEPS.items():
        settings = chosen or ConvertSettings(options={"data_file": str(tmp_path / "data")})
        target = converted(step, "qcow2", settings)
        if step == "chain":
            target = _two_above(target, tmp_path)
        if step == "chain" or os.environ.get("WIRT_TEST_LONG"):
            boots(target, "qcow2", step.replace(" ", "-"))
        source, name = target, "qcow2"
    commit(str(source))
    back = converted("back", "raw", ConvertSettings())
    boots(back, "raw", "back")
    with (
        open_image(str(guest_image.disk), format=guest_image.record.format) as first,
        open_image(str(back), format="raw") as last,
    ):
        assert compare(first, last).identical


def _two_above(base, directory):
    """Put two overlays on the image; return the upper one."""
    middle, top = directory / "middle", directory / "top"
    with open_image(str(base)) as image:
        size = image.virtual_size
    create_image(str(middle), "qcow2", size, backing=base.name, backing_format="qcow2")
    create_image(str(top), "qcow2", size, backing="middle", backing_format="qcow2")
    return top
