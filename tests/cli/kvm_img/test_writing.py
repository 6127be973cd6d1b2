"""Commands that change images: the same answers, and the same disks afterwards."""

import os
import subprocess

import pytest

from tests.cli.kvm_img.twins import ask_kvm_img, ask_qemu_img

pytestmark = pytest.mark.needs_qemu_img

COMMANDS = """
create new 1M
create -f raw -o size=1M new
create -f raw -o size=1M new 2M
create -f raw new
create -f raw new nonsense
create -f raw new -- -1
create -f raw new 1M more
create -f raw new 0x100000
create -f raw new 1.5k
create -f raw new 1.5
create -f raw new 1.5M
create -f raw new 1E
create -f raw new 16E
create -f raw -o preallocation=falloc new 1M
create -f raw -o preallocation=metadata new 1M
create -f raw -b plain.raw -F raw new
create -f qcow2 new 1M
create -q -f qcow2 new 1M
create -f qcow2 new 0
create -f qcow2 new 1000
create -f qcow2 -o compat=0.10 new 1M
create -f qcow2 -o compat=v2 new 1M
create -f qcow2 -o compat=nonsense new 1M
create -f qcow2 -o cluster_size=4k,lazy_refcounts=on new 1M
create -f qcow2 -o cluster_size=4k -o refcount_bits=1 new 1M
create -f qcow2 -o cluster_size=1000 new 1M
create -f qcow2 -o cluster_size=4M new 1M
create -f qcow2 -o cluster_size=nonsense new 1M
create -f qcow2 -o lazy_refcounts=nonsense new 1M
create -f qcow2 -o lazy_refcounts new 1M
create -f qcow2 -o nonsense=1 new 1M
create -f qcow2 -o refcount_bits=7 new 1M
create -f qcow2 -o refcount_bits=nonsense new 1M
create -f qcow2 -o compat=0.10,lazy_refcounts=on new 1M
create -f qcow2 -o compat=0.10,refcount_bits=8 new 1M
create -f qcow2 -o compression_type=zstd new 1M
create -f qcow2 -o compression_type=nonsense new 1M
create -f qcow2 -o extended_l2=on new 1M
create -f qcow2 -o extended_l2=on,cluster_size=4k new 1M
create -f qcow2 -o preallocation=metadata new 1M
create -f qcow2 -o preallocation=full new 1M
create -f qcow2 -o preallocation=nonsense new 1M
create -f qcow2 -o data_file=new.data new 1M
create -f qcow2 -o data_file=new.data,data_file_raw=on new 1M
create -f qcow2 -o data_file_raw=on new 1M
create -f qcow2 -b data.qcow2 -F qcow2 new
create -f qcow2 -b data.qcow2 -F qcow2 new 32M
create -f qcow2 -b data.qcow2 new
create -f qcow2 -b missing -F qcow2 new
create -f qcow2 -b missing -F qcow2 new 1M
create -f qcow2 -u -b missing -F qcow2 new 1M
create -f qcow2 -u -b missing -F qcow2 new
create -f qcow2 -b new -F qcow2 new
create -f qcow2 -o backing_file=data.qcow2,backing_fmt=qcow2 new
create -f qcow2 -F qcow2 new 1M
create -f qcow2 missing/new 1M
create -f qcow2 new 100P
create -f vmdk new 1M
create -f vdi new 1M
create -f vhdx new 1M
create -f parallels new 1M
convert plain.raw new
convert -O qcow2 plain.raw new
convert -f raw -O qcow2 plain.raw new
convert -O qcow2 data.qcow2 new
convert -c -O qcow2 data.qcow2 new
convert -c -O qcow2 -o compression_type=zstd data.qcow2 new
convert -c plain.raw new
convert -O raw top.qcow2 new
convert -p -O raw top.qcow2 new
convert -O qcow2 -B overlay.qcow2 -F qcow2 top.qcow2 new
convert -O qcow2 -o backing_file=overlay.qcow2 top.qcow2 new
convert -O qcow2 plain.raw disk.vdi new
convert -O raw -l first snapped.qcow2 new
convert -O raw -l snapshot.id=2 snapped.qcow2 new
convert -O raw -l nonsense snapped.qcow2 new
convert -S 0 -O qcow2 empty.qcow2 new
convert -S 3 -O qcow2 empty.qcow2 new
convert -S 64k -O raw data.qcow2 new
convert -m 99 plain.raw new
convert -m 4 -W plain.raw new
convert -C plain.raw new
convert -C -c plain.raw new
convert -n -O raw old.qcow2 plain.raw
convert -n -O qcow2 old.qcow2 data.qcow2
convert -n -O qcow2 plain.raw old.qcow2
convert -n -O qcow2 plain.raw missing
convert -n --target-is-zero -O qcow2 old.qcow2 empty.qcow2
convert --target-is-zero old.qcow2 new
convert -n -o compat=0.10 -O qcow2 old.qcow2 data.qcow2
convert --bitmaps -O qcow2 marked.qcow2 new
convert --bitmaps -O raw marked.qcow2 new
convert --bitmaps -O qcow2 plain.raw new
convert --skip-broken-bitmaps -O qcow2 marked.qcow2 new
convert --salvage -O raw data.qcow2 new
convert -O nonsense plain.raw new
convert -O dmg plain.raw new
convert -O vmdk plain.raw new
convert -O vdi plain.raw new
convert -O vhdx plain.raw new
convert -O qcow2 missing new
convert -O qcow2 plain.raw missing/new
convert -O qcow2 -o nonsense=1 plain.raw new
convert -t nonsense plain.raw new
convert --image-opts -O raw driver=qcow2,file.filename=data.qcow2 new
convert -n --target-image-opts old.qcow2 driver=raw,file.filename=plain.raw
convert --target-image-opts old.qcow2 driver=raw,file.filename=plain.raw
dd if=plain.raw of=new bs=64k count=20
dd if=plain.raw of=new bs=64k skip=16 count=17
dd if=plain.raw of=new skip=99999999
dd -O qcow2 if=top.qcow2 of=new bs=1M
dd if=plain.raw
dd nonsense
dd bs=0 if=plain.raw of=new
dd if=missing of=new
dd -O nonsense if=plain.raw of=new
resize data.qcow2 32M
resize data.qcow2 +4M
resize data.qcow2 -4M
resize --shrink data.qcow2 -4M
resize --shrink data.qcow2 1M
resize -q data.qcow2 17M
resize --preallocation=metadata data.qcow2 +4M
resize --preallocation=full data.qcow2 +1M
resize --preallocation=full data.qcow2 1M
resize --preallocation=nonsense data.qcow2 +1M
resize -f raw plain.raw 16M
resize plain.raw 16M
resize --shrink -f raw plain.raw 1M
resize -f raw --preallocation=falloc plain.raw +1M
resize data.qcow2 nonsense
resize data.qcow2
resize data.qcow2 0
resize snapped.qcow2 8M
resize --shrink marked.qcow2 2M
snapshot -c third snapped.qcow2
snapshot -a first snapped.qcow2
snapshot -a nonsense snapped.qcow2
snapshot -d first snapped.qcow2
snapshot -d 2 snapped.qcow2
snapshot -d nonsense snapped.qcow2
snapshot -c x plain.raw
snapshot -d x plain.raw
bitmap --add data.qcow2 b
bitmap --add -g 64k data.qcow2 b
bitmap --add -g 3 data.qcow2 b
bitmap --add marked.qcow2 b0
bitmap --add --disable data.qcow2 b
bitmap --remove marked.qcow2 b0
bitmap --remove marked.qcow2 nonsense
bitmap --clear marked.qcow2 b0
bitmap --enable marked.qcow2 b1
bitmap --disable marked.qcow2 b0
bitmap --merge b0 marked.qcow2 b1
bitmap --merge nonsense marked.qcow2 b1
bitmap --add --merge b0 -b marked.qcow2 -F qcow2 data.qcow2 b
bitmap --add old.qcow2 b
bitmap --add plain.raw b
bitmap data.qcow2 b
bitmap --add data.qcow2
bitmap -g 64k --remove marked.qcow2 b0
bitmap -F qcow2 --remove marked.qcow2 b0
bitmap -b plain.raw --remove marked.qcow2 b0
commit top.qcow2
commit -q top.qcow2
commit -d top.qcow2
commit -p top.qcow2
commit -b data.qcow2 top.qcow2
commit -b nonsense top.qcow2
commit data.qcow2
commit -t nonsense top.qcow2
commit missing.qcow2
commit orphan.qcow2
rebase -b data.qcow2 -F qcow2 top.qcow2
rebase -b  top.qcow2
rebase -u -b elsewhere.qcow2 -F qcow2 orphan.qcow2
rebase -u -b elsewhere.qcow2 orphan.qcow2
rebase -b plain.raw -F raw overlay.qcow2
rebase -b missing -F qcow2 overlay.qcow2
rebase -b plain.raw -F nonsense overlay.qcow2
rebase overlay.qcow2
amend -o compat=0.10 data.qcow2
amend -o compat=1.1 old.qcow2
amend -o lazy_refcounts=on data.qcow2
amend -o refcount_bits=64 data.qcow2
amend -o refcount_bits=5 data.qcow2
amend -o size=32M data.qcow2
amend -o backing_file=plain.raw,backing_fmt=raw orphan.qcow2
amend -o cluster_size=4k data.qcow2
amend -o nonsense=1 data.qcow2
amend -o compat=nonsense data.qcow2
amend -p -o lazy_refcounts=on data.qcow2
amend -o compat=1.1 plain.raw
amend data.qcow2
amend -o compat=1.1
check -r leaks leaky.qcow2
check -r all leaky.qcow2
check -r leaks --output=json leaky.qcow2
""".strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_answers_and_works_the_same(twins, command):
    words = ["" if word == "" else word for word in command.split(" ")]
    twins.take(command)
    twins.ask(*words)
    twins.same_images()


@pytest.mark.needs_root
def test_a_full_file_system_ends_both_alike(twins, tmp_path):
    twins.take("data.qcow2")
    for folder in (twins.real, twins.ours):
        (folder / "small").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder / "small"]
        subprocess.run(mount, check=True, timeout=60)
    try:
        words = ("convert", "-O", "raw", "data.qcow2", "small/new")
        real = ask_qemu_img(twins.real, *words)
        ours = ask_kvm_img(twins.ours, *words, monkeypatch=twins.monkeypatch)
        assert real.code == ours.code == 1
        assert "No space left on device" in real.err
        assert "No space left on device" in ours.err
        assert os.listdir(twins.ours / "small") == []
    finally:
        for folder in (twins.real, twins.ours):
            subprocess.run(["umount", folder / "small"], check=True, timeout=60)


def test_encrypted_images_are_made_alike(twins):
    secret = ("--object", "secret,id=s,data=passphrase")
    twins.take("plain.raw")
    luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    twins.ask("create", *secret, "-f", "qcow2", "-o", luks, "new", "1M")
    twins.ask("create", "-f", "qcow2", "-o", luks, "other", "1M")
    twins.ask("convert", *secret, "-O", "qcow2", "-o", luks, "plain.raw", "copy")
    name = "driver=qcow2,encrypt.key-secret=s,file.filename=copy"
    twins.ask("compare", *secret, "--image-opts", name, "driver=raw,file.filename=plain.raw")
    for folder in (twins.ours, twins.real):
        raw = "driver=raw,file.filename=plain.raw"
        subprocess.run(
            ["qemu-img", "compare", *secret, "--image-opts", name, raw],
            cwd=folder, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
