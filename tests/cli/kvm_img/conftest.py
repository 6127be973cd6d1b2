"""Images in many states, made once by qemu-img and qemu-io."""

import pytest

from tests.cli.kvm_img.twins import Twins, ask_qemu_img

_IMAGES = """
create -f raw plain.raw 8M
io -f raw plain.raw write -P 1 1M 64k
io -f raw plain.raw write -P 2 5M 1M
create -f qcow2 empty.qcow2 64M
create -f qcow2 data.qcow2 16M
io -f qcow2 data.qcow2 write -P 3 0 256k
io -f qcow2 data.qcow2 write -z 1M 128k
io -f qcow2 data.qcow2 write -P 4 8M 1M
io -f qcow2 data.qcow2 write -z -u 8M 64k
create -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 5M
io -f qcow2 old.qcow2 write -P 5 12k 40k
create -f qcow2 -b data.qcow2 -F qcow2 overlay.qcow2 20M
io -f qcow2 overlay.qcow2 write -P 6 128k 256k
create -f qcow2 -b overlay.qcow2 -F qcow2 top.qcow2
io -f qcow2 top.qcow2 write -P 7 9M 64k
create -f qcow2 -o extended_l2=on,cluster_size=128k sub.qcow2 8M
io -f qcow2 sub.qcow2 write -P 8 4k 4k
io -f qcow2 sub.qcow2 write -P 9 200k 9k
create -f qcow2 -o data_file=split.data,data_file_raw=on split.qcow2 4M
io -f qcow2 split.qcow2 write -P 10 1M 64k
create -f qcow2 -o compression_type=zstd seed.qcow2 2M
io -f qcow2 seed.qcow2 write -P 11 64k 1M
convert -c -O qcow2 seed.qcow2 packed.qcow2
convert -c -O qcow2 -o compression_type=zstd seed.qcow2 packed-zstd.qcow2
create -f qcow2 snapped.qcow2 4M
io -f qcow2 snapped.qcow2 write -P 12 0 1M
snapshot -c first snapped.qcow2
io -f qcow2 snapped.qcow2 write -P 13 512k 1M
snapshot -c second snapped.qcow2
create -f qcow2 marked.qcow2 4M
bitmap --add marked.qcow2 b0
io -f qcow2 marked.qcow2 write -P 14 1M 64k
bitmap --add -g 128k --disable marked.qcow2 b1
create -f vmdk disk.vmdk 8M
io -f vmdk disk.vmdk write -P 15 1M 64k
create -f vpc disk.vpc 8M
io -f vpc disk.vpc write -P 16 1M 64k
create -f vdi disk.vdi 8M
io -f vdi disk.vdi write -P 17 1M 64k
create -f vhdx disk.vhdx 8M
io -f vhdx disk.vhdx write -P 18 1M 64k
create -f qed disk.qed 8M
create -f qcow disk.qcow 8M
create -f parallels disk.hdd 8M
create --object secret,id=s,data=passphrase -f qcow2 -o \
encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 locked.qcow2 4M
create -f qcow2 leaky.qcow2 1M
create -f qcow2 broken.qcow2 1M
create -u -f qcow2 -b nowhere.qcow2 -F qcow2 orphan.qcow2 1M
""".replace("\\\n", "")


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    for line in _IMAGES.strip().splitlines():
        words = line.split()
        if words[0] == "io":
            _, option, value, name, *command = words
            words = [option, value, "-c", " ".join(command), name]
            answer = ask_qemu_img(folder, *words, program="qemu-io")
        else:
            answer = ask_qemu_img(folder, *words)
        assert answer.code == 0, (line, answer)
    _spoil(folder)
    return folder


def _spoil(folder):
    """Raise a refcount that nothing has (a leak), and lower one that something has."""
    for name, value in (("leaky.qcow2", b"\0\1"), ("broken.qcow2", b"\0\0")):
        with open(folder / name, "r+b") as file:
            file.seek(0, 2)
            file.truncate(-(-file.tell() // 65536) * 65536 + 65536)
            file.seek(2 * 65536 + (2 * 4 if name == "leaky.qcow2" else 2 * 3))
            file.write(value)
    (folder / "bad.qcow2").write_bytes(b"QFI\xfb" + bytes(600))
    (folder / "garbage").write_bytes(b"no image at all" * 100)


@pytest.fixture
def twins(stage, tmp_path, monkeypatch):
    pair = Twins(stage, tmp_path, monkeypatch)
    yield pair
    pair.clean()
