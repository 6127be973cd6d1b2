"""The doctor: what it says of this host, and of hosts that are told to it."""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from wirt.errors import HostError
from wirt.host import cgroup, doctor, memory, programs, space
from wirt.host.acceleration import judge as judge_kvm
from wirt.host.cpu import parse_cpuinfo
from wirt.host.finding import Finding
from wirt.host.kernel import landlock_abi, module_cure, module_state, read_line, subordinate_count
from wirt.host.kvm.verdict import Verdict
from wirt.host.process import run
from wirt.units import GIB


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    findings = doctor.examine(cache_dir=str(directory), places=[str(directory)])
    return {finding.id: finding for finding in findings}


def test_every_subject_is_examined(found):
    assert {
        "cpu", "kvm-device", "kvm", "kvm-nested", "qemu", "qemu-img", "ovmf", "swtpm", "vde",
        "mmdebstrap", "memory", "ksm", "hugepages", "thp", "tun", "bridge", "vhost-net",
        "vhost-vsock", "iommu", "cgroup", "kernel", "user-namespaces", "subordinate-ids",
        "landlock", "seccomp", "ptrace", "userfaultfd",
    } <= found.keys()  # fmt: skip


def test_everything_wrong_comes_with_its_cure(found):
    wrong = [finding for finding in found.values() if finding.status in {"warn", "fail"}]
    assert [finding.id for finding in wrong if not finding.cure] == []


def test_findings_survive_json(found):
    encoded = msgspec.json.encode(list(found.values()))
    assert msgspec.json.decode(encoded, type=list[Finding]) == list(found.values())
    assert {"id", "title", "status", "detail", "cure"} <= json.loads(encoded)[0].keys()


def test_seccomp_and_landlock_are_as_the_kernel_says(found):
    assert (found["seccomp"].status == "ok") == (
        "Seccomp_filters" in read_line("/proc/self/status")
    )
    assert (found["landlock"].status == "ok") == (landlock_abi() > 0)


@pytest.mark.needs_qemu
def test_the_version_is_the_one_qemu_prints(found):
    words = run(["qemu-system-x86_64", "--version"]).stdout.decode().split()
    assert found["qemu"].detail.startswith(words[words.index("version") + 1])


def test_a_missing_qemu_fails_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("wirt.host.process._MORE_PATH", ())
    found = {finding.id: finding for finding in programs.programs("qemu-system-x86_64", "/none")}
    assert (found["qemu"].status, found["qemu"].cure) == ("fail", "apt install qemu-system-x86")
    assert found["swtpm"].cure == "apt install swtpm"
    assert found["setpriv"].status == "fail"


def test_what_cannot_be_examined_is_a_finding_too():
    def refuse():
        raise PermissionError(13, "Permission denied")

    def fail():
        raise HostError("why", hint="what")

    assert (
        doctor._guarded("x", refuse)[0].detail == "cannot be examined: [Errno 13] Permission denied"
    )
    assert doctor._guarded("x", fail) == [Finding("x", "x", "warn", "why", "what")]


def test_the_worst_finding_counts():
    findings = [Finding("", "", status, "") for status in ("ok", "fail", "warn")]
    assert doctor.worst(findings) == "fail"
    assert doctor.worst([]) == "ok"


@pytest.mark.needs_root
@pytest.mark.needs_tool("setpriv")
def test_an_ordinary_user_is_examined_without_errors():
    """Nobody may see much; still nothing but findings comes out."""
    script = (
        "import sys, msgspec; sys.path[:0] = sys.argv[1].split(':')\n"
        "from wirt.host.doctor import examine\n"
        "print(msgspec.json.encode(examine(cache_dir='/nonexistent', places=['/'])).decode())"
    )
    # The interpreter and the tree may lie where nobody may go: capabilities stay for reading.
    keep = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    ids = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    path = ":".join(sys.path)
    done = run(["setpriv", *ids, *keep, sys.executable, "-c", script, path], check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = {finding["id"]: finding for finding in json.loads(done.stdout)}
    assert found["space:/"]["status"] == "fail"
    assert "may not write" in found["space:/"]["detail"]


def test_the_verdict_becomes_a_finding():
    assert judge_kvm(Verdict(usable=True, reason="runs")).status == "ok"
    bad = judge_kvm(Verdict(usable=False, reason="why", hint="what"))
    assert (bad.status, bad.cure) == ("warn", "what")
    assert "why" in bad.detail


@pytest.mark.parametrize(
    ("text", "extension", "module"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t: fpu vmx\n\nflags : svm", "vmx", "kvm_intel"),
        ("vendor_id\t: AuthenticAMD\nflags\t: svm hypervisor", "svm", "kvm_amd"),
        ("", "", "kvm_intel"),
        ("nonsense", "", "kvm_intel"),
    ],
)
def test_the_cpu_is_read_from_cpuinfo(text, extension, module):
    cpu = parse_cpuinfo(text)
    assert (cpu.extension, cpu.module) == (extension, module)
    assert cpu.is_virtual == ("hypervisor" in text)


@pytest.mark.parametrize(
    ("available", "status"), [(8 * GIB, "ok"), (GIB // 2, "warn"), (GIB // 64, "fail")]
)
def test_short_memory_is_said(available, status):
    assert memory.judge_space(16 * GIB, available).status == status


def test_meminfo_is_in_bytes_and_counts():
    facts = memory.parse_meminfo("MemTotal:  1024 kB\nHugePages_Total:   7\nodd line\n")
    assert facts == {"MemTotal": 1 << 20, "HugePages_Total": 7}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"free": 100 * GIB, "inodes": 10**6, "writable": True}, "ok"),
        ({"free": 100 * GIB, "inodes": None, "writable": True}, "ok"),
        ({"free": GIB, "inodes": 10**6, "writable": True}, "warn"),
        ({"free": 1000, "inodes": 10**6, "writable": True}, "fail"),
        ({"free": 100 * GIB, "inodes": 3, "writable": True}, "fail"),
        ({"free": 100 * GIB, "inodes": 10**6, "writable": False}, "fail"),
    ],
)
def test_room_is_judged(facts, status):
    assert space.judge("/x", **facts).status == status


def test_room_for_a_place_that_is_not_there_yet_is_its_parents(tmp_path):
    (one,) = space.space([str(tmp_path / "a" / "b")])
    assert one.status in {"ok", "warn"}
    assert os.listdir(tmp_path) == []


V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    r"33 31 0:30 / /mnt/odd\040name rw master:1 - cgroup cgroup rw,memory"
)


def test_cgroup_mounts_are_read():
    assert cgroup.parse_mounts(V2) == {"": "/sys/fs/cgroup"}
    old = cgroup.parse_mounts(V1)
    assert old["cpu"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert old["memory"] == "/mnt/odd name"
    assert cgroup.parse_mounts("garbage\n - \n1 2 3 4 5 - cgroup2") == {}


ALL = frozenset({"cpu", "io", "memory", "pids"})


@pytest.mark.parametrize(
    ("version", "controllers", "writable", "status", "cure"),
    [
        (2, ALL, True, "ok", ""),
        (2, ALL, False, "warn", "Delegate=yes"),
        (2, ALL - {"io", "cpu"}, True, "warn", "Delegate=cpu"),
        (1, ALL, True, "info", ""),
        (0, frozenset(), False, "warn", "mount -t cgroup2"),
    ],
)
def test_cgroups_are_judged(version, controllers, writable, status, cure):
    one = cgroup.judge(cgroup.Cgroups(version, "/sys/fs/cgroup", controllers, writable))
    assert one.status == status
    assert cure in one.cure


def test_our_own_group_is_found():
    assert cgroup._own_group("9:name=systemd:/x\n0::/user.slice/a:b\n") == "/user.slice/a:b"
    assert cgroup._own_group("") == "/"


def test_ranges_of_subordinate_ids_are_counted():
    text = "other:1:99999\nme:100000:1000\n1000:200000:65536\nme:x:y\nme\n"
    assert subordinate_count(text, "me", 1000) == 65536
    assert subordinate_count(text, "nobody", 5) == 0


def test_modules_are_known():
    assert module_state("no_such_module") == "absent"
    assert "boot a kernel" in module_cure("no_such_module")
    loaded = next(name for name in os.listdir("/sys/module"))
    assert module_state(loaded) == "loaded"


def test_the_doctor_leaves_nothing_running(tmp_path):
    listing = ["ps", "--ppid", str(os.getpid()), "-o", "pid="]
    before = subprocess.run(listing, capture_output=True, check=False).stdout.split()
    doctor.examine(cache_dir=str(tmp_path), places=[])
    after = subprocess.run(listing, capture_output=True, check=False).stdout.split()
    assert len(after) <= len(before)


def test_a_directory_of_sockets_may_be_small():
    facts = {"free": 10 << 20, "inodes": 1000, "writable": True}
    assert space.judge("/run", **facts, short=space.SOCKETS, none=space.SOCKETS).status == "ok"
    assert space.judge("/run", **facts).status == "fail"


@pytest.mark.needs_root
@pytest.mark.needs_tool("unshare")
def test_a_container_without_sys_and_devices_is_examined():
    """Nothing is mounted there but the file system and a /proc of its own."""
    script = (
        "import os, json, msgspec\n"
        "from wirt.host.doctor import examine\n"
        "found = examine(cache_dir='/nonexistent', places=['/var/tmp'], sockets='/var/tmp')\n"
        "print(msgspec.json.encode(found).decode())"
    )
    hide = 'mount -t tmpfs none /sys; mount -t tmpfs none /dev; exec "$0" -c "$1"'
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    path = ":".join(sys.path)
    done = run(
        [*namespaces, "sh", "-ec", hide, sys.executable, script],
        env={"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = {finding["id"]: finding for finding in json.loads(done.stdout)}
    assert found["kvm"]["detail"].startswith("there is no /dev/kvm")
    assert found["cgroup"]["status"] == "warn"
