"""ssh into a guest through wirt's helper: no network, no forwarded port, no password."""

from __future__ import annotations

import shlex
import sys

from wirt.errors import GuestError
from wirt.host.process import find_program
from wirt.store.atomic import write_file
from wirt.store.machines import find
from wirt.store.record import read_record
from wirt.vm.context import Context
from wirt.vm.execute import Order, execute, way_in
from wirt.vm.keys import own_key, public_key

_PROXY = """\
use strict; use Socket; my $port = shift;
socket(my $s, PF_INET, SOCK_STREAM, 0) or die "socket: $!\\n";
connect($s, sockaddr_in($port, inet_aton("127.0.0.1"))) or die "port $port: $!\\n";
my $child = fork // die "fork: $!\\n";
my ($from, $to) = $child ? (*STDIN, $s) : ($s, *STDOUT);
my $data;
while (my $n = sysread($from, $data, 65536)) {
    my $done = 0;
    while ($done < $n) { $done += syswrite($to, $data, $n - $done, $done) // exit 1; }
}
if ($child) { shutdown($s, 1); waitpid($child, 0); }
"""

_ADD_KEY = """\
set -e
home=$(getent passwd "$1" | cut -d: -f6)
[ -n "$home" ] || { echo "there is no user $1" >&2; exit 1; }
mkdir -p -m 700 "$home/.ssh"
touch "$home/.ssh/authorized_keys"
grep -qxF "$2" "$home/.ssh/authorized_keys" || echo "$2" >> "$home/.ssh/authorized_keys"
chmod 600 "$home/.ssh/authorized_keys"
chown -R "$1:" "$home/.ssh"
cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null || true
"""


def ssh_command(context: Context, name: str, *, user: str, words: list[str]) -> list[str]:
    """Return the ssh line for a guest, after making sure that its key is known on both sides.

    Raises WrongState, GuestError, MissingDependency.
    """
    paths = find(context.home, name)
    user = user or read_record(paths.record).guest_user or "root"
    if way_in(paths) != "helper":
        raise GuestError(
            f"{name} has no helper of wirt's to carry ssh",
            hint="forward a port (-p 2222:22) and use ssh -p 2222 localhost",
        )
    key = own_key(context)
    _introduce(context, name, user)
    proxy = [sys.executable, "-m", "wirt", "exec", name, "--", "perl", "-e", _PROXY, "22"]
    return [
        find_program("ssh"),
        "-i", key,
        "-o", "IdentitiesOnly=yes",
        "-o", f"HostKeyAlias=wirt-{name}",
        "-o", f"UserKnownHostsFile={paths.ssh_known_hosts}",
        "-o", f"ProxyCommand={shlex.join(proxy).replace('%', '%%')}",
        f"{user}@{name}",
        *words,
    ]  # fmt: skip


def _introduce(context: Context, name: str, user: str) -> None:
    public = public_key(context)
    out, errors = bytearray(), bytearray()
    code = execute(
        context,
        name,
        Order(
            ["sh", "-c", _ADD_KEY, "sh", user, public],
            stdout=out.extend,
            stderr=errors.extend,
            timeout=60,
        ),
    )
    if code:
        raise GuestError(f"ssh could not be prepared in {name}: {errors.decode(errors='replace')}")
    host_keys = [line.split()[:2] for line in out.decode(errors="replace").splitlines()]
    known = "".join(f"wirt-{name} {' '.join(words)}\n" for words in host_keys if len(words) == 2)
    paths = find(context.home, name)
    write_file(paths.ssh_known_hosts, known.encode())
