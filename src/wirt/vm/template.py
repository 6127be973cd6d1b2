"""Warm images: the second ``wirt run debian:12 -- COMMAND`` goes on where the first one booted.

The first boots, and when its guest is up it is frozen; the machine itself goes on and runs the
command. A state fits only what is the same in every respect, so a fingerprint of QEMU, CPU,
image and settings is its name.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping

import msgspec

from wirt.catalog.image import Kind, StoredImage
from wirt.errors import WirtError
from wirt.host.accel import choose_accelerator
from wirt.host.cpu import host_cpu
from wirt.host.qemu_probe import probe
from wirt.protocols.guest.client import GuestSession
from wirt.protocols.guest.messages import Identity
from wirt.protocols.qga.client import AgentClient
from wirt.store import templates as store
from wirt.store.kept_memory import keep_memory
from wirt.store.layout import VmPaths
from wirt.store.machines import find
from wirt.store.record import read_record
from wirt.store.states import State, find_state
from wirt.store.templates import Template
from wirt.units import GIB, parse_size
from wirt.version import VERSION
from wirt.vm.channels import AGENT, open_ports
from wirt.vm.context import Context
from wirt.vm.create import Wish
from wirt.vm.description import load_started
from wirt.vm.forking.incoming import qemu_facts
from wirt.vm.monitor import connect
from wirt.vm.session import guest_session
from wirt.vm.source import Source
from wirt.vm.start import DEFAULT_BINARY

DEFAULT_BUDGET = 8 * GIB
_QUIET_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_IDLE = 0.1
"""Of a processor: what a guest uses at most that only keeps itself going."""
# A seed on the disk would be the same in all forks; what is in memory only would be lost to
# a machine that is started from the disk.
_QUIET = "rm -f /var/lib/systemd/random-seed; sync"


class Sought(msgspec.Struct, frozen=True):
    """The template that would fit."""

    fingerprint: str
    kind: str
    image: StoredImage


def seek(context: Context, source: Source | None, wish: Wish) -> Sought | None:
    """Return which template would fit; None where there can be none."""
    if not isinstance(source, StoredImage) or source.record.kind is not Kind.BUILT:
        return None
    if not source.record.helper or wish.cdrom or wish.disk_size or _has_ports(wish.settings):
        return None
    accelerator = str(wish.settings.get("accelerator", "auto"))
    capabilities = probe(DEFAULT_BINARY, context.home.cache)
    chosen = choose_accelerator(
        accelerator, cache_dir=context.home.cache, built_in=capabilities.accelerators
    )
    if chosen.name != "tcg" and wish.settings.get("forkable") != "on":
        return None
    asked = (source.record.name, sorted(_plain(wish.settings).items()), wish.seed)
    facts = (
        VERSION, source.record.id, qemu_facts(context, capabilities).sha256, chosen.name,
        host_cpu().model if chosen.name == "kvm" else "",
    )  # fmt: skip
    kind = _digest(asked)
    return Sought(_digest((kind, facts)), kind, source)


def _has_ports(settings: Mapping[str, object]) -> bool:
    """A port of the host is one machine's; and so is all else that a card may name."""
    return "nics" in settings and settings["nics"] != []


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in {"name", "description"}}


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]


def find_warm(context: Context, sought: Sought) -> State | None:
    """Return the state to fork; None if it has to be made."""
    try:
        template = store.read_template(context.home, sought.fingerprint)
        state = find_state(context.home, template.state)
        if not state.manifest.in_devices:
            _ = state.memory  # raises if the host lost it
    except WirtError:
        return None
    store.touch(context.home, sought.fingerprint)
    return state


def make_warm(context: Context, sought: Sought, name: str) -> Template | None:
    """Freeze the running machine ``name`` into the template; None, said aloud, if it fails.

    The machine goes on either way.
    """
    try:
        return _make(context, sought, name)
    except WirtError as error:
        context.say(f"no template is kept: {error}")
        return None


def _make(context: Context, sought: Sought, name: str) -> Template:
    from wirt.vm.forking.freeze import freeze

    paths = find(context.home, name)
    with guest_session(paths, timeout=_QUIET_SECONDS) as session:
        _rehearse(session)
        _rehearse_agent(paths)
        session.exec(["sh", "-c", _QUIET], timeout=_QUIET_SECONDS)
    _settle(paths)
    machine = load_started(paths)
    frozen = freeze(context, name, label=store.hold_label(sought.fingerprint))
    keep_memory(frozen.state)
    template = Template(
        fingerprint=sought.fingerprint,
        kind=sought.kind,
        image=sought.image.record.name,
        image_id=sought.image.record.id,
        state=frozen.state.id,
        created=time.time(),
        memory=machine.memory,
        vcpus=machine.cpu.vcpus,
    )
    store.add_template(context.home, template, frozen.state)
    context.say(f"kept warm as template {template.fingerprint} (wirt template ls)")
    _replace_older(context, template)
    evict(context, keep=template.fingerprint)
    return template


def _rehearse(session: GuestSession) -> None:
    """Do once what each fork begins with: what it needs of the disk is in memory then."""
    session.exec(["true"], timeout=_QUIET_SECONDS)
    hostname = session.info(timeout=_QUIET_SECONDS).hostname
    session.set_identity(Identity(os.urandom(32), hostname), timeout=_QUIET_SECONDS)


def _rehearse_agent(paths: VmPaths) -> None:
    with connect(paths, read_record(paths.record)) as qmp:
        answers = AGENT in open_ports(qmp)
    if answers:
        with AgentClient.connect(paths.socket(AGENT), timeout=_QUIET_SECONDS) as agent:
            agent.ping()


def _settle(paths: VmPaths) -> None:
    """Return when the guest has nothing to do any more: all forks would do it once again."""
    run = read_record(paths.record).run
    deadline = time.monotonic() + _QUIET_SECONDS
    while run is not None and time.monotonic() < deadline:
        used = run.process.cpu_seconds()
        time.sleep(_LOOK_SECONDS)
        if run.process.cpu_seconds() - used < _IDLE * _LOOK_SECONDS:
            return


def _replace_older(context: Context, template: Template) -> None:
    for other in store.templates(context.home):
        if other.kind == template.kind and other.fingerprint != template.fingerprint:
            store.remove_template(context.home, other.fingerprint)


def budget() -> int:
    """Return the bytes that templates may take on disk: ``WIRT_TEMPLATE_BUDGET``, else 8 GiB."""
    text = os.environ.get("WIRT_TEMPLATE_BUDGET", "")
    return parse_size(text) if text else DEFAULT_BUDGET


def evict(context: Context, *, keep: str = "") -> None:
    """Remove the least recently used templates until all fit the budget."""
    everything = store.templates(context.home)
    sizes = {one.fingerprint: size_on_disk(context, one) for one in everything}
    for template in everything:
        if sum(sizes.values()) <= budget():
            return
        if template.fingerprint != keep:
            del sizes[template.fingerprint]
            context.say(f"template {template.fingerprint} ({template.image}) makes room")
            store.remove_template(context.home, template.fingerprint)


def size_on_disk(context: Context, template: Template) -> int:
    """Return the bytes that the files of the template's state occupy, in RAM or on disk."""
    paths = context.home.state(template.state)
    total = 0
    for root in (paths.root, paths.memory):
        names = [root] if os.path.isfile(root) else _files(root)
        for name in names:
            try:
                total += os.lstat(name).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _files(directory: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(directory) if entry.is_file()]
    except FileNotFoundError:
        return []


class Row(msgspec.Struct, frozen=True):
    """A template as it is listed. Sizes in bytes, times in Unix seconds."""

    fingerprint: str
    image: str
    state: str
    memory: int
    vcpus: int
    on_disk: int
    created: float
    used: float
    fits: bool
    """False: QEMU was updated, or the memory was lost; the next run makes another."""


def list_templates(context: Context) -> list[Row]:
    """Return all templates, the most recently used first."""
    store.sweep(context.home)
    return [row_of(context, one) for one in reversed(store.templates(context.home))]


def row_of(context: Context, template: Template) -> Row:
    """Return what is known of a template."""
    return Row(
        fingerprint=template.fingerprint,
        image=template.image,
        state=template.state,
        memory=template.memory,
        vcpus=template.vcpus,
        on_disk=size_on_disk(context, template),
        created=template.created,
        used=store.used(context.home, template.fingerprint),
        fits=_fits(context, template),
    )


def _fits(context: Context, template: Template) -> bool:
    try:
        state = find_state(context.home, template.state)
        binary = state.manifest.machine.qemu.binary or DEFAULT_BINARY
        same = qemu_facts(context, probe(binary, context.home.cache)) == state.manifest.qemu
        return same and bool(state.manifest.in_devices or state.memory)
    except WirtError:
        return False
