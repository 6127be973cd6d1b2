"""An ordinary user: switches, cables and a private network, and words for the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

import wirt
from tests.vm.network.conftest import namespace, reach
from wirt.store.layout import Home
from wirt.store.locks import run_lock_is_held

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("dnsmasq"),
    pytest.mark.needs_tool("slirp4netns"),
]

USER = 65534
LINE = "console=ttyS0 no_timer_check mitigations=off quiet rdinit=/init"
# A card asks for an address, and the other one has received something.
HEARS = (
    "before=$(cat /sys/class/net/eth{receiver}/statistics/rx_bytes); for n in $(seq 20); do"
    " arping -D -c 1 -w 1 -I eth{sender} 10.9.9.9 >/dev/null 2>&1;"
    " [ $(cat /sys/class/net/eth{receiver}/statistics/rx_bytes) != $before ] && exit 0;"
    " done; exit 1"
)
# Debian's /dev/net/tun is for everybody; a container's may not be.
ENTER = """
mkdir -p "$1"
mknod -m 666 "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun
ip link set lo up
shift
exec setpriv --reuid={user} --regid={user} --clear-groups --bounding-set=-all --inh-caps=-all "$@"
"""


class Ordinary:
    """The program wirt, run by a user without privileges in a network namespace."""

    def __init__(self, base: Path, python: str) -> None:
        self.base = base
        self._python = python
        self._holder = namespace()
        packages = Path(msgspec.__file__).parent.parent
        self._env = {
            "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
            "PYTHONPATH": f"{Path(wirt.__file__).parent.parent}:{packages}",
            "WIRT_HOME": str(base / "home"),
            "XDG_RUNTIME_DIR": str(base / "run"),
            "HOME": str(base),
        }

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "--target", str(self._holder.pid), "--net", "unshare", "--mount"]
        script = [*inside, "sh", "-ec", ENTER.format(user=USER), "sh", str(self.base / "dev")]
        done = subprocess.run(
            [*script, self._python, "-m", "wirt", *words],
            env=self._env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        shutil.rmtree(self.base / "dev", ignore_errors=True)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done

    def json(self, *words: str):
        return json.loads(self(*words, "--json").stdout)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def user():
    python = shutil.which(f"python3.{sys.version_info[1]}", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no interpreter of this version that every user may run")
    base = Path(tempfile.mkdtemp(prefix="wirt-u-", dir="/var/tmp"))
    base.chmod(0o711)
    for name in ("home", "run"):
        (base / name).mkdir(mode=0o700)
        os.chown(base / name, USER, USER)
    made = Ordinary(base, python)
    try:
        yield made
    finally:
        for verb, kind in (("cable", "cable"), ("switch", "switch"), ("net", "bridge")):
            root = base / "home" / "networks" / kind
            for name in os.listdir(root) if root.exists() else ():
                made(verb, "rm", name, *(("--force",) if verb != "cable" else ()))
        made.close()
        shutil.rmtree(base)


def test_an_ordinary_user_has_switches_cables_and_a_private_network(
    user, guest_image, tiny_initrd, guests
):
    user("switch", "create", "dmz")
    user("switch", "create", "lan")
    user("cable", "create", "dmz", "lan", "--delay", "5ms", "--name", "between")
    assert user.json("cable", "ls")[0]["status"] == "up"
    user("net", "create", "office", "--private", "--address", "10.64.3.1/24")
    assert "10.64.3.1" in user("net", "exec", "office", "--", "ip", "-br", "address").stdout
    guest = ("--kernel", str(guest_image.kernel), "--initrd", str(tiny_initrd), "--cmdline", LINE)
    user("create", "one", "--no-net", "-m", "192M", "--disk-size", "1M", *guest)
    # Three ends in one guest: what leaves by the one wire comes back by the other.
    for backend in ("user", "switch=dmz", "network=office", "socket,listen=127.0.0.1:7000",
                    "switch=lan", "socket,connect=127.0.0.1:7000"):  # fmt: skip
        user("nic", "add", "one", backend)
    user("start", "one")
    home = Home(str(user.base / "home"), str(user.base / "run" / "wirt"))
    shell = guests["tiny"].Shell(guests["tiny"].console(home.vm("one")))
    shell("for n in 0 1 2 3 4 5; do ip link set eth$n up; done")
    for card in (0, 2):  # QEMU's own network, and the private one
        shell(f"udhcpc -i eth{card} -q -n -t 20 -T 1 -s /dhcp")
    addresses = shell("ip address")
    assert "10.0.2.15/" in addresses
    assert "10.64.3." in addresses
    for address in ("10.0.2.2", "10.64.3.1"):
        reach(shell, address)
    for sender, receiver in ((1, 4), (3, 5)):  # two switches and a cable; a TCP wire
        shell(HEARS.format(sender=sender, receiver=receiver), timeout=300)
    shell.close()
    cards = {row["card"]: row["wire"] for row in user.json("nic", "ls", "one")}
    assert cards["nic2"]["interface"].startswith("wtap")
    ports = user.json("switch", "show", "dmz")["ports"]
    assert any("wirt one nic1" in port["plugs"] for port in ports)
    assert "network office" in user("net", "map").stdout
    assert run_lock_is_held(str(user.base / "home" / "vms" / "one" / "run.lock"))
    user("rm", "--force", "one")


def test_what_needs_root_says_so_and_why(user):
    for words in (
        ("net", "create", "office"),
        ("switch", "create", "dmz", "--uplink", "tap"),
        ("switch", "create", "dmz", "--uplink", "bridge=br0"),
    ):
        error = user(*words, code=9).stderr
        assert "needs root: " in error
        assert "--private" in error
    user("create", "one", "--no-net", "-m", "64M", "--disk-size", "1M")
    user("nic", "add", "one", "bridge=nowhere")
    assert "no bridge nowhere" in user("start", "one", code=4).stderr
    user("nic", "plug", "one", "nic0", "tap")
    error = user("start", "one", code=9).stderr
    assert "needs root (CAP_NET_ADMIN)" in error
    user("rm", "--force", "one")
