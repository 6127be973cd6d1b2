"""A guest boots from a served image of a format that QEMU could not write."""

import pytest

from tests.image.storage.peers import uri
from wirt.image.base import AllowLocalFiles
from wirt.image.convert import ConvertSettings, convert
from wirt.image.open import open_image

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_guest,
    pytest.mark.xdist_group("guest"),
]


def test_a_guest_boots_from_a_served_stream_optimized_vmdk(guest_image, guests, serve, tmp_path):
    emulator = guests["emulator"]
    disk = tmp_path / "disk.vmdk"
    with open_image(
        str(guest_image.disk), format=guest_image.record.format, gate=AllowLocalFiles()
    ) as image:
        settings = ConvertSettings(compressed=True, options={"subformat": "streamOptimized"})
        convert([image], str(disk), "vmdk", settings)
    serve(disk, "--format", "vmdk", "--read-only", "--unix", tmp_path / "s", "-t")
    arguments = emulator.kernel_arguments(guest_image)
    with emulator.boot(tmp_path, uri(tmp_path / "s"), *arguments) as agent:
        found = emulator.sh(
            agent, "cd / && md5sum -c --quiet --ignore-missing /var/lib/dpkg/info/dash.md5sums"
        )
        assert found == ""
