"""A guest goes back in time: its memory, its files, its clock, and who it is."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_guest, pytest.mark.xdist_group("warm")]

WHO = "cat /proc/sys/kernel/random/boot_id /etc/machine-id /proc/sys/kernel/hostname"


def test_memory_and_disk_go_back_and_the_clock_does_not(guest_cli):
    def sh(name, script):
        done = guest_cli("exec", name, "--", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    done = guest_cli("run", "--timeout", "15m", "debian:12", "--name", "box", timeout=1200)
    assert done.returncode == 0, done.stderr
    try:
        sh("box", "echo memory >/dev/shm/word; echo disk >/root/word; sync")
        who = sh("box", WHO)
        assert guest_cli("snapshot", "box", "before").returncode == 0
        sh("box", "echo worse >/dev/shm/word; rm /root/word; hostname other; sync")
        sh("box", "rm -rf /var/cache/apt/*; chmod 600 /etc/hosts; mkdir /srv/new; sync")
        done = guest_cli("diff", "box:before", "box", "--json")
        assert done.returncode == 1, done.stderr
        [disk] = json.loads(done.stdout)["disks"]
        [system] = disk["file_systems"]
        assert (system["kind"], system["note"]) == ("ext4", "")
        files = {file["path"]: file["change"] for file in system["files"]}
        assert files["/root/word"] == "removed"
        assert files["/srv/new"] == "added"
        assert files["/etc/hosts"] == "attributes"
        assert "/etc/passwd" not in files
        assert 0 < disk["bytes"] < 64 << 20
        assert b"removed     /root/word" in guest_cli("diff", "box:before", "box").stdout
        done = guest_cli("undo", "box", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["unchanged"] == []
        assert sh("box", "cat /dev/shm/word /root/word") == "memory\ndisk\n"
        assert sh("box", WHO) == who
        began = time.time()
        assert began - 30 < int(sh("box", "date +%s")) < time.time() + 30
        first = sh("box", "cat /proc/sys/kernel/random/uuid")
        assert guest_cli("restore", "box", "before", "--to", "box2").returncode == 0
        assert sh("box2", "cat /dev/shm/word /root/word; hostname") == "memory\ndisk\nbox2\n"
        assert sh("box2", "cat /etc/machine-id") not in who
        assert sh("box2", "cat /proc/sys/kernel/random/uuid") != first
        reading = "echo 3 >/proc/sys/vm/drop_caches; cat /root/word; sha256sum /usr/bin/perl"
        read = sh("box2", reading)
        done = guest_cli("keep", "box2", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["disks"] == ["disk0"]
        assert sh("box2", reading) == read
        assert guest_cli("restore", "box", "replaced").returncode == 0
        assert sh("box", "cat /dev/shm/word; hostname") == "worse\nother\n"
    finally:
        guest_cli("rm", "--force", "box", "box2")
