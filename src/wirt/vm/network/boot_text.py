"""What starts a switch at boot without wirt: a stanza of ifupdown, or a systemd unit."""

from __future__ import annotations

from wirt.errors import UsageError
from wirt.store import wires
from wirt.store.wires import SwitchRecord
from wirt.vm.context import Context

_IFUPDOWN = """\
# /etc/network/interfaces.d/{name}: VDE switch {name}, as `wirt switch create` makes it.
# Debian's hook of vde2 runs it with sockets at /run/vde2/{interface}.ctl; machines reach
# it with: wirt nic plug VM nic0 vde=/run/vde2/{interface}.ctl
auto {interface}
iface {interface} inet manual
    vde2-switch -t {interface} -n {ports} -f {rcfile}
{bridge}"""
_BRIDGE = """\
    up ip link set $IFACE up
    up ip link set $IFACE master {bridge}
"""
_UP = "    up ip link set $IFACE up\n"
_SYSTEMD = """\
# /etc/systemd/system/vde-{name}.service: VDE switch {name}, as `wirt switch create` makes it.
[Unit]
Description=VDE switch {name}
After=network-pre.target
Before=network.target

[Service]
RuntimeDirectory=vde-{name}
# vde_switch ends with its standard input, and leaves the foreground with -d.
Type=forking
PIDFile=/run/vde-{name}/pid
ExecStart=/usr/bin/vde_switch -d -p /run/vde-{name}/pid -s {control} -M {console} \\
    -n {ports} -m 0660 --dirmode 0770 -f {rcfile}{tap}
{after}Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def switch_boot_text(context: Context, name: str, form: str) -> str:
    """Return the text for ``form`` (``ifupdown`` or ``systemd``).

    Raises NotFound, UsageError: a stanza of ifupdown is that of a tap.
    """
    record = wires.read(wires.find(context.home, "switch", name), SwitchRecord)
    if record.uplink == "network":
        raise UsageError(
            f"the uplink of {name} is a network of wirt's, which wirt starts",
            hint=f"wirt switch create {name} --persist, and wirt autostart --as systemd",
        )
    values = {
        "name": name,
        "ports": record.ports + 1,  # vde_switch counts a port 0 that nobody gets
        "control": f"/run/vde-{name}/ctl",
        "console": f"/run/vde-{name}/console.sock",
        "rcfile": _settings_file(record),
    }
    if form == "systemd":
        return _comment(record) + _SYSTEMD.format(**values, **_systemd_uplink(record))
    if not record.interface:
        raise UsageError(
            f"{name} has no tap, which a stanza of ifupdown is about", hint="--as systemd"
        )
    joins = _BRIDGE.format(bridge=record.target) if record.uplink == "bridge" else _UP
    return _comment(record) + _IFUPDOWN.format(**values, interface=record.interface, bridge=joins)


def _systemd_uplink(record: SwitchRecord) -> dict[str, str]:
    if not record.interface:
        return {"tap": "", "after": ""}
    after = f"ExecStartPost=/usr/sbin/ip link set {record.interface} up\n"
    if record.uplink == "bridge":
        after += f"ExecStartPost=/usr/sbin/ip link set {record.interface} master {record.target}\n"
    return {"tap": f" -t {record.interface}", "after": after}


def _settings_file(record: SwitchRecord) -> str:
    return "/etc/vde2/wirt.rc" if record.vlans else "/dev/null"


def _comment(record: SwitchRecord) -> str:
    """The VLANs are commands of the switch, which it reads from a file."""
    if not record.vlans:
        return ""
    lines = ["# Put these lines into /etc/vde2/wirt.rc:", "#   hash/setminper 0"]
    vlans = sorted({vlan for _, vlan, _ in record.vlans if vlan})
    lines += [f"#   vlan/create {vlan}" for vlan in vlans]
    lines += [f"#   port/create {port}" for port in sorted({port for port, _, _ in record.vlans})]
    for port, vlan, tagged in record.vlans:
        lines.append(
            f"#   vlan/addport {vlan} {port}" if tagged else f"#   port/setvlan {port} {vlan}"
        )
    return "\n".join(lines) + "\n"
