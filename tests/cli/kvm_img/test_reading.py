"""Commands that change nothing: kvm-img says exactly what qemu-img says."""

import pytest

pytestmark = pytest.mark.needs_qemu_img

IMAGES = (
    "plain.raw", "empty.qcow2", "data.qcow2", "old.qcow2", "overlay.qcow2", "top.qcow2",
    "sub.qcow2", "split.qcow2", "packed.qcow2", "packed-zstd.qcow2", "snapped.qcow2",
    "marked.qcow2", "disk.vmdk", "disk.vpc", "disk.vdi", "disk.vhdx", "disk.qed", "disk.qcow",
    "disk.hdd", "locked.qcow2", "leaky.qcow2", "broken.qcow2", "orphan.qcow2", "bad.qcow2",
    "garbage", "missing.qcow2",
)  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_info_and_map_and_check_are_the_same(twins, name):
    twins.share()
    twins.ask("info", name)
    twins.ask("info", "--output=json", name)
    twins.ask("info", "--backing-chain", "--output=json", name)
    if name != "disk.vhdx":  # qemu-img cannot tell where a VHDX has data
        twins.ask("map", name)
        twins.ask("map", "--output=json", name)
    if name.endswith((".qcow2", "raw")):
        twins.ask("check", name)
        twins.ask("check", "--output=json", name)
    twins.ask("snapshot", "-l", name)


QUESTIONS = """
info --backing-chain top.qcow2
info -f raw data.qcow2
info -f qcow2 plain.raw
info -f qcow2 garbage
info -f nonsense plain.raw
info -U data.qcow2
info --force-share --output json data.qcow2
info --output=xml data.qcow2
info
info data.qcow2 plain.raw
info --nonsense data.qcow2
info -x data.qcow2
info -f
info --image-opts driver=qcow2,file.filename=data.qcow2
info --image-opts driver=qcow2,file.driver=file,file.filename=data.qcow2
info --image-opts file.filename=data.qcow2
info --image-opts driver=raw,offset=1M,size=1M,file.filename=plain.raw
info --image-opts driver=raw,offset=9M,file.filename=plain.raw
info --image-opts driver=raw,size=9M,file.filename=plain.raw
info --image-opts driver=qcow2,file.filename=missing
info --image-opts driver=nonsense,file.filename=plain.raw
info --image-opts driver=raw,nonsense=1,file.filename=plain.raw
info --image-opts driver=file,filename=plain.raw
info --image-opts -f qcow2 driver=qcow2
info json:{"driver":"qcow2","file":{"driver":"file","filename":"data.qcow2"}}
info json:{"driver":"qcow2","file.filename":"data.qcow2"}
info json:{'driver':'raw','file':{'driver':'file','filename':'data.qcow2'}}
info file:data.qcow2
info nonsense:data.qcow2
info .
map --start-offset=1M --max-length=2M --output=json data.qcow2
map -s 1M -l 7M data.qcow2
map -s nonsense data.qcow2
map --output=json -U top.qcow2
map --output=json json:{"driver":"qcow2","file.filename":"top.qcow2","backing":null}
check -r nonsense data.qcow2
check -q data.qcow2
check -q leaky.qcow2
check -T nonsense data.qcow2
check missing.qcow2
compare data.qcow2 data.qcow2
compare data.qcow2 plain.raw
compare -s data.qcow2 plain.raw
compare -q data.qcow2 plain.raw
compare -f raw -F raw data.qcow2 data.qcow2
compare packed.qcow2 seed.qcow2
compare -s empty.qcow2 data.qcow2
compare missing.qcow2 plain.raw
compare plain.raw
compare -p data.qcow2 data.qcow2
compare empty.qcow2 overlay.qcow2
snapshot snapped.qcow2
snapshot -l -a first snapped.qcow2
snapshot -l plain.raw
snapshot -U -l snapped.qcow2
measure --size 1G
measure --size 1G -O qcow2
measure --size 1G -O qcow2 --output=json
measure --size 1G -O qcow2 -o cluster_size=4k
measure --size 1G -O qcow2 -o preallocation=full
measure --size 1G -O qcow2 -o extended_l2=on
measure --size 1G -O qcow2 -o refcount_bits=1,compat=1.1
measure --size 1G -O qcow2 -o nonsense=1
measure --size 1G -O vmdk
measure --size 1G -O nonsense
measure --size 1G plain.raw
measure -O qcow2 plain.raw
measure -O qcow2 data.qcow2
measure -O qcow2 marked.qcow2
measure -O qcow2 -l first snapped.qcow2
measure -O qcow2 -l snapshot.name=first snapped.qcow2
measure -O qcow2 -l nonsense snapped.qcow2
measure -O qcow2 -f qcow2 top.qcow2
measure -f raw
measure
measure plain.raw data.qcow2
bench -c 5 -d 1 data.qcow2
bench -c nonsense data.qcow2
bench --flush-interval=3 data.qcow2
bench -w --flush-interval=3 data.qcow2
nonsense
--nonsense
create
create -f qcow2
create -f nonsense new 1M
create -f raw -o help
create -f qcow2 -o help
create -f qcow2 -o help new
create -f raw -o ?
create -f dmg -o help
create -f nonsense -o help
create -f qcow2 -o ,help new 1M
amend -f qcow2 -o help
amend -f raw -o help
amend -o help data.qcow2
convert -O qcow2 -o help plain.raw new
convert -O raw -o help
convert
convert plain.raw
""".strip().splitlines()


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_same(twins, question):
    twins.share()
    twins.ask(*question.split())


def test_an_encrypted_image_opens_with_its_secret(twins):
    twins.share()
    secret = ("--object", "secret,id=s,data=passphrase")
    wrong = ("--object", "secret,id=s,data=nonsense")
    name = "driver=qcow2,encrypt.key-secret=s,file.filename=locked.qcow2"
    twins.ask("info", *secret, "--image-opts", name)
    twins.ask("info", "--image-opts", name)
    twins.ask("map", *secret, "--image-opts", name)
    twins.ask("map", "--image-opts", name)
    twins.ask("map", *wrong, "--image-opts", name)
    twins.ask("check", "locked.qcow2")
    twins.ask("compare", *secret, "--image-opts", name, "driver=qcow2,file.filename=empty.qcow2")


def test_a_machine_that_holds_an_image_keeps_it(twins):
    from wirt.image.locks import WRITER, lock

    twins.take("top.qcow2 plain.raw")

    for folder in (twins.real, twins.ours):
        file = open(folder / "data.qcow2", "r+b")  # noqa: SIM115 - held for the whole test
        lock(file.fileno(), WRITER, path="data.qcow2")
        twins.__dict__.setdefault("held", []).append(file)
    twins.ask("info", "data.qcow2")
    twins.ask("info", "-U", "data.qcow2")
    twins.ask("map", "top.qcow2")
    twins.ask("resize", "data.qcow2", "32M")
    twins.ask("convert", "-O", "raw", "plain.raw", "data.qcow2")
    twins.ask("create", "-f", "raw", "data.qcow2", "1M")
    for file in twins.held:
        file.close()
