"""Giving a fork an identity through the QEMU guest agent, where wirt's helper is not there.

Each step is a program that the agent starts in the guest, so it takes longer, and other
programs of the guest run before it.
"""

from __future__ import annotations

import time

from wirt.errors import WirtError
from wirt.protocols.guest.messages import Identity
from wirt.protocols.qga.client import AgentClient
from wirt.vm.forking.outcome import Outcome

# RNDADDENTROPY and RNDRESEEDCRNG; the seed comes as hexadecimal on standard input.
_RESEED = r"""
read -r seed
perl -e '
    my $s = pack "H*", $ARGV[0];
    open my $r, "+<", "/dev/urandom" or die;
    ioctl $r, 0x40085203, pack("i i a*", 8 * length $s, length $s, $s) or die;
    ioctl $r, 0x5207, 0 or die' "$seed" 2>/dev/null ||
python3 -c '
import fcntl, struct, sys
s = bytes.fromhex(sys.argv[1])
r = open("/dev/urandom", "wb")
fcntl.ioctl(r, 0x40085203, struct.pack("ii", 8 * len(s), len(s)) + s)
fcntl.ioctl(r, 0x5207, 0)' "$seed" || exit 1
rm -f /var/lib/systemd/random-seed
"""
_HOSTNAME = 'read -r n && echo "$n" >/proc/sys/kernel/hostname && echo "$n" >/etc/hostname'
_MACHINE_ID = """\
read -r id && echo $id >/etc/machine-id.wirt && mv /etc/machine-id.wirt /etc/machine-id
"""
_MACS = """\
while read -r old new; do
    for a in /sys/class/net/*/address; do
        [ "$(cat $a)" = "$old" ] || continue
        d=$(basename ${a%/address})
        ip link set dev $d address $new || {
            ip link set dev $d down && ip link set dev $d address $new && ip link set dev $d up
        } || exit 1
        networkctl reconfigure $d 2>/dev/null || nmcli device reapply $d 2>/dev/null ||
            { dhclient -r $d; dhclient $d; } 2>/dev/null || true
    done
done
"""


def set_by_agent(socket: str, identity: Identity, *, timeout: float) -> Outcome:
    """Change what the agent can; say what it could not."""
    try:
        with AgentClient.connect(socket, timeout=timeout) as agent:
            return _set(agent, identity, timeout)
    except WirtError as error:
        return Outcome("agent", unchanged=(f"the guest agent did not answer: {error}",))


def _set(agent: AgentClient, identity: Identity, timeout: float) -> Outcome:
    failed = []
    if identity.set_clock:
        try:
            agent.set_time(time.time(), timeout=timeout)
        except WirtError as error:
            failed.append(f"the clock ({error})")
    for what, script, text in _scripts(identity):
        problem = _run(agent, script, text, timeout)
        if problem:
            failed.append(f"{what} ({problem})")
    uuid = _uuid(agent, timeout)
    return Outcome("agent", uuid, tuple(failed))


def _scripts(identity: Identity) -> list[tuple[str, str, str]]:
    macs = "".join(f"{old} {new}\n" for old, new in identity.macs)
    wanted = [
        ("random numbers", _RESEED, f"{(identity.seed or b'').hex()}\n" if identity.seed else ""),
        ("host name", _HOSTNAME, f"{identity.hostname}\n" if identity.hostname else ""),
        ("machine-id", _MACHINE_ID, f"{identity.machine_id}\n" if identity.machine_id else ""),
        ("network addresses", _MACS, macs),
    ]
    return [one for one in wanted if one[2]]


def _run(agent: AgentClient, script: str, text: str, timeout: float) -> str:
    """Run a step; return why it failed, or ""."""
    try:
        done = agent.exec("/bin/sh", ["-c", script], stdin=text.encode(), timeout=timeout)
    except WirtError as error:
        return str(error)
    if done.exitcode == 0:
        return ""
    words = done.err_data.decode(errors="replace").strip().splitlines()
    return words[-1][:200] if words else "the guest lacks the means"


def _uuid(agent: AgentClient, timeout: float) -> str:
    try:
        done = agent.exec("/bin/cat", ["/proc/sys/kernel/random/uuid"], timeout=timeout)
    except WirtError:
        return ""
    return done.out_data.decode(errors="replace").strip()[:36]
