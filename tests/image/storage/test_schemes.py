"""Names that are no files reach a storage only if the user wrote them, or the gate let them."""

import pytest

from wirt.errors import CorruptImage, ImageAccessDenied, UsageError
from wirt.image.base import AllowLocalFiles, OpenGate
from wirt.image.convert import ConvertSettings, convert
from wirt.image.create import create_image
from wirt.image.open import open_image
from wirt.image.storage import schemes
from wirt.image.storage.file import FileStorage
from wirt.image.storage.schemes import Scheme, find_scheme

MIB = 1 << 20


class AllowAll(OpenGate):
    def allows(self, name, *, role, referrer):
        return True


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve files of a directory under ``mem:NAME``; return the directory and what was opened."""
    opened = []

    def open_served(name, writable):
        opened.append(name)
        return FileStorage(str(tmp_path / name.partition(":")[2]), writable=writable)

    monkeypatch.setattr(schemes, "SCHEMES", (Scheme(("mem:",), open_served),))
    return tmp_path, opened


def test_the_prefix_decides_and_a_directory_in_front_makes_it_a_file(served):
    assert find_scheme("mem:x") is not None
    assert find_scheme("MEM:x") is not None
    for name in ("./mem:x", "/mem:x", "mem", "memory:x", "other:x", ""):
        assert find_scheme(name) is None


def test_a_name_of_the_user_is_opened_and_written(served):
    directory, opened = served
    create_image(str(directory / "a"), "qcow2", MIB)
    with open_image("mem:a", writable=True) as image:
        image.pwrite(0, b"x" * 512)
    with open_image(str(directory / "a")) as image:
        assert image.pread(0, 512) == b"x" * 512
    assert opened == ["mem:a"]


def test_a_name_inside_an_image_is_opened_only_with_the_gate(served):
    directory, opened = served
    create_image(str(directory / "base"), "qcow2", MIB)
    top = str(directory / "top")
    create_image(top, "qcow2", MIB, backing="mem:base", backing_format="qcow2")
    for gate in (None, AllowLocalFiles()):
        with pytest.raises(ImageAccessDenied):
            open_image(top, gate=gate)
    assert opened == []
    with open_image(top, gate=AllowAll()) as image:
        assert image.backing is not None
    assert opened == ["mem:base"]


@pytest.mark.parametrize("name", ["base", "/etc/hostname", "file:base"])
def test_an_image_from_a_server_names_no_local_file_whatever_the_gate_says(served, name):
    directory, _ = served
    create_image(str(directory / "base"), "raw", MIB)
    create_image(str(directory / "top"), "qcow2", MIB, backing=name, backing_format="raw")
    with pytest.raises(ImageAccessDenied, match="from a server"):
        open_image("mem:top", gate=AllowAll())
    with open_image("mem:top", with_backing=False) as image:
        assert image.virtual_size == MIB


def test_chains_of_servers_end(served):
    directory, _ = served
    create_image(str(directory / "a"), "qcow2", MIB, backing="mem:a", backing_format="qcow2")
    with pytest.raises(CorruptImage, match="comes back"):
        open_image("mem:a", gate=AllowAll())


def test_nothing_is_made_at_a_server_but_what_is_there_is_written(served):
    directory, _ = served
    create_image(str(directory / "source"), "raw", MIB)
    (directory / "target").write_bytes(bytes(MIB))
    with open_image(str(directory / "source"), format="raw", writable=True) as image:
        image.pwrite(4096, b"data" * 128)
    with open_image(str(directory / "source"), format="raw") as image:
        with pytest.raises(UsageError, match="nothing can be made"):
            convert([image], "mem:target", "raw")
        convert([image], "mem:target", "raw", ConvertSettings(into_existing=True))
    assert (directory / "target").read_bytes() == (directory / "source").read_bytes()
