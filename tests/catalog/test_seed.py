from __future__ import annotations

import base64
import gzip
import json
import subprocess

import pytest

from wirt.catalog.fat import build_fat
from wirt.catalog.recipe import guest_parts
from wirt.catalog.seed import Seed, SeedFile, build_seed
from wirt.errors import UsageError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 somebody@host"
pytestmark = pytest.mark.needs_tool("mtype")


def read(image, tmp_path, name):
    path = tmp_path / "seed.img"
    path.write_bytes(image)
    answer = subprocess.run(
        ["mtype", "-i", path, f"::{name}"], check=True, capture_output=True, timeout=120
    )
    return answer.stdout


def test_mtools_reads_back_every_file_and_the_label(tmp_path):
    files = {
        "meta-data": b"a: 1\n",
        "empty": b"",
        "one cluster exactly": b"x" * 2048,
        "a much longer name than thirteen characters.txt": bytes(range(256)) * 100,
        "thirteen-char": b"13",
        "Grüße": b"utf-16",
    }
    image = build_fat(files, label="CIDATA")
    for name, content in files.items():
        assert read(image, tmp_path, name) == content
    listing = subprocess.run(
        ["mdir", "-i", tmp_path / "seed.img", "::"], check=True, capture_output=True, timeout=120
    )
    assert b"is CIDATA" in listing.stdout


@pytest.mark.needs_tool("fsck.fat")
@pytest.mark.parametrize("size", [0, 1, 2048, 2049, 20 << 20])
def test_the_file_system_is_sound(tmp_path, size):
    path = tmp_path / "fat"
    path.write_bytes(build_fat({"a": b"z" * size, "meta-data": b"m"}, label="CIDATA"))
    subprocess.run(["fsck.fat", "-n", path], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 256, 'q"', "tab\t"])
def test_names_that_fat_cannot_hold_are_refused(name):
    with pytest.raises(UsageError):
        build_fat({name: b""}, label="X")


def test_too_much_content_is_refused():
    with pytest.raises(UsageError, match="64 MiB"):
        build_fat({"a": bytes(65 << 20)}, label="X")


def test_a_seed_says_who_the_machine_is_and_who_may_enter(tmp_path):
    seed = Seed(
        instance_id="7f", hostname="web1", user="anna", ssh_keys=(KEY,), macs=("52:54:00:AB:CD:EF",)
    )
    image = build_seed(seed)
    assert json.loads(read(image, tmp_path, "meta-data")) == {
        "instance-id": "7f",
        "local-hostname": "web1",
    }
    user_data = read(image, tmp_path, "user-data")
    assert user_data.startswith(b"#cloud-config\n")
    data = json.loads(user_data.partition(b"\n")[2])
    assert data["users"][0]["name"] == "anna"
    assert data["users"][0]["ssh_authorized_keys"] == [KEY]
    assert data["users"][0]["lock_passwd"] is True
    network = json.loads(read(image, tmp_path, "network-config"))
    assert network["ethernets"]["eth0"]["match"] == {"macaddress": "52:54:00:ab:cd:ef"}


def test_without_a_user_the_images_own_gets_the_key(tmp_path):
    image = build_seed(Seed(instance_id="1", hostname="h", ssh_keys=(KEY,)))
    data = json.loads(read(image, tmp_path, "user-data").partition(b"\n")[2])
    assert data["users"] == ["default"]
    assert data["ssh_authorized_keys"] == [KEY]


def test_files_and_the_helper_travel_packed(tmp_path):
    file = SeedFile(path="/etc/motd", content=b'quotes " and \x00 bytes', mode="0600")
    image = build_seed(Seed(instance_id="1", hostname="h", files=(file,), commands=("true",)))
    data = json.loads(read(image, tmp_path, "user-data").partition(b"\n")[2])
    written = {
        entry["path"]: gzip.decompress(base64.b64decode(entry["content"]))
        for entry in data["write_files"]
    }
    assert written["/etc/motd"] == file.content
    assert written["/usr/lib/wirt/wirt-guest"] == guest_parts()["wirt-guest"]
    assert data["runcmd"][-1] == "true"
    assert "wirt-guest.service" in data["runcmd"][0]
    plain = build_seed(Seed(instance_id="1", hostname="h", helper=False))
    assert b"write_files" not in read(plain, tmp_path, "user-data")
