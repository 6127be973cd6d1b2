"""The files that wirt adds to a built guest, as a tar archive: owners need no privileges."""

from __future__ import annotations

import io
import tarfile
import time

from wirt.catalog.recipe import Recipe, guest_parts, read_copy

# Units that a server guest of wirt does not need at every start. Most load one module that
# the kernel would load by itself at its first use; under TCG each costs a quarter second.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "man-db.timer",
    "kmod-static-nodes.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "dev-hugepages.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-firstboot.service",
    "systemd-journald-audit.socket",
    "systemd-modules-load.service",
    "systemd-network-generator.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-networkd-wait-online.service",
    "systemd-pcrmachine.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pstore.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    # The manager of the services of root's own sessions, which are none.
    "user@0.service",
)
_NO_GENERATORS = (
    "systemd-bless-boot-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)
_ENABLED = {
    "multi-user.target.wants": ("systemd-networkd.service", "wirt-resolv.path"),
    "sockets.target.wants": ("systemd-networkd.socket",),
}
_PARTS = {
    "wirt.network": "etc/systemd/network/80-wirt.network",
    "wirt-resolv": "usr/lib/wirt/wirt-resolv",
    "wirt-resolv.path": "etc/systemd/system/wirt-resolv.path",
    "wirt-resolv.service": "etc/systemd/system/wirt-resolv.service",
    "agent.conf": "etc/systemd/system/qemu-guest-agent.service.d/wirt.conf",
    "helper.conf": "etc/systemd/system/wirt-guest.service.d/agent.conf",
    "journald.conf": "etc/systemd/journald.conf.d/wirt.conf",
    "modprobe.conf": "etc/modprobe.d/wirt.conf",
    "networkd.conf": "etc/systemd/system/systemd-networkd.service.d/wirt.conf",
    "trigger.conf": "etc/systemd/system/systemd-udev-trigger.service.d/wirt.conf",
}
_HELPER = {
    "wirt-guest": "usr/lib/wirt/wirt-guest",
    "wirt-guest.service": "etc/systemd/system/wirt-guest.service",
}
_EXECUTABLE = frozenset({"wirt-resolv", "wirt-guest"})
_AUTOLOGIN = """\
# Whoever can open the serial console of this machine owns its disk as well.
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
"""


def has_helper() -> bool:
    """Whether wirt's guest helper comes with this wirt."""
    return set(_HELPER) <= set(guest_parts())


def build_overlay(recipe: Recipe, host_keys: dict[str, bytes]) -> bytes:
    """Return the tar archive to unpack over the root file system of the guest."""
    archive = _Archive()
    parts = guest_parts()
    placed = {**_PARTS, **(_HELPER if has_helper() else {})}
    for name, target in placed.items():
        archive.add(target, parts[name], 0o755 if name in _EXECUTABLE else 0o644)
    for unit in MASKED:
        archive.link(f"etc/systemd/system/{unit}", "/dev/null")
    for generator in _NO_GENERATORS:
        archive.link(f"etc/systemd/system-generators/{generator}", "/dev/null")
    for target, units in _ENABLED.items():
        for unit in units:
            home = "/etc/systemd/system" if unit in parts else "/usr/lib/systemd/system"
            archive.link(f"etc/systemd/system/{target}/{unit}", f"{home}/{unit}")
    archive.add("etc/hostname", f"{recipe.hostname}\n".encode())
    archive.add("etc/hosts", _hosts(recipe.hostname))
    archive.add("etc/default/locale", b"LANG=C.UTF-8\n")
    archive.add("etc/fstab", b"# The root file system is mounted before systemd starts.\n")
    if recipe.autologin:
        archive.add("etc/systemd/system/serial-getty@ttyS0.service.d/wirt.conf",
                    _AUTOLOGIN.encode())  # fmt: skip
    for path, content in host_keys.items():
        archive.add(path.lstrip("/"), content, 0o644 if path.endswith(".pub") else 0o600)
    for copy in recipe.files:
        archive.add(copy.target.lstrip("/"), read_copy(copy), copy.mode)
    return archive.finish()


def setup_script(recipe: Recipe) -> str:
    """Return the shell script that runs as root in the guest's tree after the overlay."""
    lines = ["set -eu", "passwd --quiet --lock root"]
    homes = ["/root"]
    if recipe.user:
        lines += [
            f"useradd --create-home --shell /bin/bash --password '*' {recipe.user}",
            f"echo '{recipe.user} ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/wirt",
            "chmod 0440 /etc/sudoers.d/wirt",
        ]
        homes.append(f"/home/{recipe.user}")
    for home in homes if recipe.ssh_keys else []:
        keys = "\n".join(key.strip() for key in recipe.ssh_keys)
        lines += [
            f"install -d -m 0700 -o $(stat -c %U {home}) -g $(stat -c %G {home}) {home}/.ssh",
            f"cat >{home}/.ssh/authorized_keys <<'WIRT-KEYS'",
            keys,
            "WIRT-KEYS",
            f"chown --reference={home} {home}/.ssh/authorized_keys",
            f"chmod 0600 {home}/.ssh/authorized_keys",
        ]
    if has_helper():
        lines.append("systemctl --quiet enable wirt-guest.service")
    # Or systemd takes a fresh guest for an updated one, and rebuilds caches at its first boot.
    lines.append("touch --date='now + 5 seconds' /etc/.updated /var/.updated")
    # An empty machine-id is filled at the first boot, so that no two machines share one.
    lines += [
        ": >/etc/machine-id",
        "rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/resolv.conf",
        "ln -s /run/wirt/resolv.conf /etc/resolv.conf",
        "rm -f /boot/initrd.img-* /var/log/dpkg.log /var/log/apt/* /var/log/bootstrap.log",
    ]
    return "\n".join([*lines, ""])


def _hosts(hostname: str) -> bytes:
    return (
        f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"
    ).encode()


class _Archive:
    """A tar archive in memory whose entries belong to root."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT)
        self._now = int(time.time())

    def add(self, path: str, content: bytes, mode: int = 0o644) -> None:
        info = self._entry(path, mode)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def link(self, path: str, target: str) -> None:
        info = self._entry(path, 0o777)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(info)

    def finish(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def _entry(self, path: str, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.mode, info.mtime = mode, self._now
        return info
