"""How QEMU runs: in the background, stopped, as another user, with which logs."""

from __future__ import annotations

import os

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import drop, flag, forget, keep, process, refuse, valued
from wirt.qemu.legacy.values import parse

_REBOOT = {"reset", "shutdown"}
_WATCHDOGS = {"i6300esb", "ib700"}
_WATCHDOG_ACTIONS = {"reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"}


def daemonize(draft: Draft, given: Given) -> Outcome | None:
    """In the background, once the machine is ready."""
    draft.daemonize = True
    return process(draft, given)


def nodefaults(draft: Draft, _given: Given) -> Outcome | None:
    """No device that the line does not name."""
    draft.defaults = False
    return Outcome("same")


def no_reboot(draft: Draft, _given: Given) -> Outcome | None:
    """A reboot ends QEMU."""
    draft.actions["reboot"] = "shutdown"
    return Outcome("same", today="-action reboot=shutdown")


def no_shutdown(draft: Draft, _given: Given) -> Outcome | None:
    """QEMU stays when the guest powers off."""
    draft.actions["shutdown"] = "pause"
    return Outcome("same", today="-action shutdown=pause")


def action(draft: Draft, given: Given) -> Outcome | None:
    """Reactions to events in the guest."""
    values = parse(given.value)
    for key in ("reboot", "panic", "shutdown"):
        text = values.take(key)
        if text:
            draft.actions[key] = text
    watchdog = values.take("watchdog")
    if watchdog:
        draft.watchdog["action"] = watchdog
    return Outcome("same")


def watchdog(draft: Draft, given: Given) -> Outcome | None:
    """A watchdog."""
    if given.value in {"?", "help"}:
        return Outcome("same", why="i6300esb and ib700")
    if given.value not in _WATCHDOGS:
        raise Refused(f"there is no watchdog {given.value[:30]!r}", "i6300esb or ib700")
    draft.watchdog["model"] = given.value
    return Outcome(today=f"-device {given.value}")


def watchdog_action(draft: Draft, given: Given) -> Outcome | None:
    """What the watchdog does."""
    if given.value not in _WATCHDOG_ACTIONS:
        raise Refused(f"{given.value[:30]!r}", ", ".join(sorted(_WATCHDOG_ACTIONS)))
    draft.watchdog["action"] = given.value
    return Outcome(today=f"-action watchdog={given.value}")


def incoming(draft: Draft, given: Given) -> Outcome | None:
    """The state comes from another QEMU or a file."""
    if given.value.startswith("rdma:"):
        return process(draft, given)
    return process(draft, given)


def run_as(draft: Draft, given: Given) -> Outcome | None:
    """Another user, or a root directory of its own."""
    parameter = {"runas": "user", "chroot": "chroot"}[given.option]
    if draft.capabilities.option_has("run-with", parameter):
        draft.process += ["-run-with", f"{parameter}={given.value.replace(',', ',,')}"]
        return Outcome(today=f"-run-with {parameter}=")
    return process(draft, given)


def single_step(draft: Draft, given: Given) -> Outcome | None:
    """One instruction at a time."""
    if draft.capabilities.version < (8, 1, 0):
        return process(draft, given)
    return Outcome("dropped", why="it only slowed the translator down, for its developers")


def audio_help(draft: Draft, _given: Given) -> Outcome | None:
    """A list of sound drivers."""
    draft.query = ["-audiodev", "help"]
    return None


def log_file(draft: Draft, given: Given) -> Outcome | None:
    """Where QEMU's debug log goes."""
    directory = os.path.dirname(given.value)
    if directory:
        draft.need(directory, "the directory")
    return process(draft, given)


def realtime(draft: Draft, given: Given) -> Outcome | None:
    """Memory that is never swapped."""
    values = parse(given.value)
    draft.process += ["-overcommit", f"mem-lock={values.take('mlock', default='on')}"]
    return None


def xen(_draft: Draft, _given: Given) -> Outcome | None:
    """Xen."""
    raise Refused("this is for Xen, and wirt runs KVM and QEMU's own translator", "xl create")


def help_(draft: Draft, _given: Given) -> Outcome | None:
    """QEMU's own help."""
    draft.query = ["-help"]
    return None


def version(draft: Draft, _given: Given) -> Outcome | None:
    """QEMU's version."""
    draft.query = ["-version"]
    return None


OPTIONS = (
    flag("h", "0.8", "", "help", help_),
    flag("help", "0.8", "", "help", help_),
    flag("version", "0.11", "", "version", version),
    flag("audio-help", "0.8", "", "list of sound drivers", audio_help, "-audiodev help"),
    flag("daemonize", "kvm-17", "", "in the background, once ready", daemonize),
    valued("pidfile", "0.8", "", "file for QEMU's process number", process),
    flag("S", "0.8", "", "do not start the guest yet", process),
    flag("preconfig", "3.0", "", "stop before the machine is made", process),
    flag("nodefaults", "0.12", "", "no devices but the named ones", nodefaults),
    flag(
        "nodefconfig", "0.13", "3.1", "do not read QEMU's configuration", forget, "-no-user-config"
    ),
    flag("no-user-config", "1.2", "", "do not read the user's configuration", forget),
    flag("no-reboot", "kvm-17", "", "a reboot ends QEMU", no_reboot),
    flag("no-shutdown", "kvm-72", "", "QEMU stays when the guest powers off", no_shutdown),
    valued("action", "6.0", "", "reactions to events in the guest", action),
    valued("watchdog", "0.11", "7.2", "a watchdog", watchdog, "-device"),
    valued("watchdog-action", "0.11", "", "what the watchdog does", watchdog_action),
    valued("loadvm", "0.8", "", "go on from a snapshot inside the image", process),
    valued("incoming", "kvm-80", "", "the state comes from elsewhere", incoming),
    flag("only-migratable", "2.8", "", "refuse devices that cannot migrate", process),
    valued("runas", "0.10", "10.0", "run as another user", run_as, "-run-with user="),
    valued("chroot", "0.10", "9.0", "a root directory of its own", run_as, "-run-with chroot="),
    valued("run-with", "9.0", "", "how QEMU runs", process),
    valued("gdb", "0.11", "", "wait for a debugger", process),
    flag("s", "0.8", "", "debugger at port 1234", process),
    valued(
        "p", "0.8", "0.11", "port of the debugger", drop, "-gdb tcp::PORT", "only together with -s"
    ),
    valued("d", "0.8", "", "what to log", process),
    valued("D", "0.15", "", "file of the log", log_file),
    valued("dfilter", "2.4", "", "addresses to log", process),
    valued("seed", "4.0", "", "seed of QEMU's random numbers", process),
    valued("trace", "0.15", "", "what to trace", process),
    valued("plugin", "4.2", "", "a plugin of the translator", process),
    valued("compat", "6.0", "", "how to treat deprecated forms", process),
    valued("msg", "1.5", "", "form of the messages", forget),
    valued("sandbox", "1.2", "", "filter of system calls", process),
    valued("overcommit", "3.0", "", "memory that is never swapped", process),
    valued(
        "realtime", "1.5", "6.0", "memory that is never swapped", realtime, "-overcommit mem-lock="
    ),
    flag("singlestep", "0.11", "9.0", "one instruction at a time", single_step),
    valued("readconfig", "0.12", "", "further options in a file", keep),
    valued(
        "writeconfig",
        "0.12",
        "7.1",
        "write the options to a file",
        drop,
        "",
        "wirt adopt keeps the machine, wirt export prints its line",
    ),
    flag(
        "enable-fips",
        "1.2",
        "7.1",
        "forbid weak VNC passwords",
        drop,
        "",
        "the host's own FIPS mode decides",
    ),
    valued("dump-vmstate", "2.2", "", "layout of the migration stream", process),
    flag("enable-sync-profile", "3.1", "", "measure locks", process),
    flag(
        "async-teardown",
        "7.2",
        "9.0",
        "free memory in the background",
        drop,
        "",
        "only large machines noticed",
    ),
    flag(
        "old-param",
        "0.9",
        "by 7.2",
        "old way to give a kernel of ARM its parameters",
        drop,
        "",
        "it was for boards of ARM",
    ),
    flag(
        "semihosting",
        "kvm-17",
        "",
        "calls from the guest to the host (ARM)",
        drop,
        "",
        "it was for boards of ARM and ColdFire",
    ),
    valued("prom-env", "0.9", "", "variable of OpenFirmware", drop, "", "a PC has no OpenFirmware"),
    valued("xen-domid", "0.11", "", "number of a Xen domain", xen),
    flag("xen-create", "0.11", "by 7.2", "make a Xen domain", xen),
    flag("xen-attach", "0.11", "", "use a Xen domain", xen),
    valued("tpmdev", "1.5", "", "backend of a TPM", keep),
    valued(
        "cpu-vendor",
        "kvm-36",
        "0.11",
        "maker of the CPU that the guest sees",
        refuse,
        "-cpu MODEL,vendor=GenuineIntel",
        "it is a property of the CPU now",
    ),
)
