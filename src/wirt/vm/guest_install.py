"""Putting wirt's helper into a guest that runs and was made by others.

The way in is the guest agent, or wirt's helper itself, which is then replaced by this
version's. The guest needs perl; with systemd the helper also starts with it.
"""

from __future__ import annotations

import time
from importlib.resources import files

from wirt.errors import GuestError, Timeout
from wirt.store.machines import find
from wirt.vm.channels import HELPERS
from wirt.vm.context import Context
from wirt.vm.description import load_spec
from wirt.vm.execute import Order, execute
from wirt.vm.wait import wait_for_guest

_SECONDS = 300.0
_POLL_SECONDS = 0.5
_PROGRAM = """\
set -e
command -v perl >/dev/null || { echo "the guest has no perl" >&2; exit 1; }
mkdir -p /usr/lib/wirt
cat >/usr/lib/wirt/wirt-guest.new
perl -c /usr/lib/wirt/wirt-guest.new 2>/dev/null || { echo "its perl is too old" >&2; exit 1; }
chmod 755 /usr/lib/wirt/wirt-guest.new
mv -f /usr/lib/wirt/wirt-guest.new /usr/lib/wirt/wirt-guest
"""
_SERVICE = """\
set -e
if command -v systemctl >/dev/null; then
    cat >/etc/systemd/system/wirt-guest.service
    systemctl daemon-reload
    systemctl --quiet enable wirt-guest.service
    (sleep 1; systemctl restart wirt-guest.service) >/dev/null 2>&1 </dev/null &
else
    setsid /usr/lib/wirt/wirt-guest >/dev/null 2>&1 </dev/null &
    echo "no systemd: it does not start with the guest" >&2
fi
"""


def install_helper(context: Context, name: str) -> str:
    """Install the helper and return when it answers; "" or what a user should know.

    Raises WrongState, GuestError (no way in, no perl), Timeout.
    """
    paths = find(context.home, name)
    if HELPERS[0] not in {channel.name for channel in load_spec(paths).channels}:
        raise GuestError(
            f"{name} has no port for the helper",
            hint=f"wirt set {name} 'channels[0].name={HELPERS[0]}', and restart it",
        )
    _feed(context, name, _PROGRAM, "wirt-guest")
    note = _feed(context, name, _SERVICE, "wirt-guest.service")
    deadline = time.monotonic() + _SECONDS
    while wait_for_guest(context, name, timeout=_SECONDS) != "helper":  # the agent was there before
        if time.monotonic() > deadline:
            raise Timeout(f"the helper was installed in {name}, and does not answer")
        time.sleep(_POLL_SECONDS)
    return note


def _feed(context: Context, name: str, script: str, file: str) -> str:
    """Run a script in the guest with one of our files as its input; return its remarks."""
    text = files("wirt.catalog").joinpath("guest", file).read_bytes()
    said = bytearray()
    order = Order(["sh", "-c", script], stdin=text, stderr=said.extend, timeout=_SECONDS)
    code = execute(context, name, order)
    words = said.decode(errors="replace").strip()
    if code:
        raise GuestError(f"the helper cannot be installed in {name}: {words or code}")
    return words
