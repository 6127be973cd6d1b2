"""KVM, its old switches, and the software translation."""

from __future__ import annotations

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome
from wirt.qemu.legacy.option import drop, flag, valued
from wirt.qemu.legacy.values import number, parse, size

_HONEST = "wirt tries whether KVM really runs a guest, and says when it does not"


def with_kvm(draft: Draft, _given: Given) -> Outcome | None:
    """KVM if it works: the qemu-kvm of old fell back as well, in one line of its log."""
    draft.settings["accelerator"] = "auto"
    return Outcome(today="-accel kvm, where it works", why=_HONEST)


def without_kvm(draft: Draft, _given: Given) -> Outcome | None:
    """Software."""
    draft.settings["accelerator"] = "tcg"
    return None


def accel(draft: Draft, given: Given) -> Outcome | None:
    """An accelerator and its properties."""
    values = parse(given.value, first="accel")
    names = values.take("accel")
    if names.startswith(("?", "help")):
        draft.query = ["-accel", "help"]
        return None
    if names == "tcg":
        draft.settings["accelerator"] = "tcg"
    cache = values.take("tb-size")
    if cache:
        draft.settings["tcg_cache"] = number(cache, "tb-size", 0, 1 << 20) << 20
    elif names == "tcg":
        draft.settings["tcg_cache"] = 0
    for key, text in values:
        draft.process += ["-accel", f"{names},{key}={text}"]
    return Outcome("same" if names == "tcg" else "translated", today="-accel " + names)


def cache_size(draft: Draft, given: Given) -> Outcome | None:
    """Translation cache in MiB."""
    draft.settings["tcg_cache"] = number(given.value, "tb-size", 0, 1 << 20) << 20
    return None


def reinjection(draft: Draft, _given: Given) -> Outcome | None:
    """Ticks that were lost stay lost."""
    draft.args += ["-global", "kvm-pit.lost_tick_policy=discard"]
    return None


def shadow_memory(_draft: Draft, given: Given) -> Outcome | None:
    """Memory for shadow page tables."""
    wanted = size(given.value, "-kvm-shadow-memory")
    return Outcome("dropped", why=f"{wanted >> 20} MiB for shadow page tables: CPUs since 2009 "
                   "have nested pages and need none")  # fmt: skip


def nesting(draft: Draft, _given: Given) -> Outcome | None:
    """KVM inside the guest."""
    feature = draft.facts.virtualization
    if not feature:
        return Outcome("dropped", why="this host's CPU has no virtualization to hand on")
    draft.cpu_features.append(f"+{feature}")
    return Outcome(today=f"-cpu …,+{feature}")


OPTIONS = (
    flag("enable-kvm", "kvm-80", "", "use KVM", with_kvm),
    flag("no-kvm", "kvm-17", "5.2", "software instead of KVM", without_kvm, "-accel tcg"),
    valued("accel", "2.9", "", "accelerator and its properties", accel),
    flag(
        "no-kvm-irqchip",
        "kvm-60",
        "3.0",
        "interrupt controllers in QEMU instead of the kernel",
        drop,
        "",
        "it was a work-around for KVM's first years; the guest sees the same chips",
    ),
    flag(
        "no-kvm-pit",
        "kvm-65",
        "2.12",
        "timer in QEMU instead of the kernel",
        drop,
        "",
        "it was a work-around for KVM's first years; the guest sees the same timer",
    ),
    flag(
        "no-kvm-pit-reinjection",
        "kvm-84",
        "3.0",
        "do not make up for lost timer ticks",
        reinjection,
        "-global kvm-pit.lost_tick_policy=discard",
    ),
    flag(
        "tdf",
        "kvm-36",
        "2.12",
        "time drift fix: make up for lost timer ticks",
        drop,
        "",
        "KVM's timer makes up for lost ticks by itself now",
    ),
    valued("kvm-shadow-memory", "kvm-60", "by 7.2", "memory for shadow page tables", shadow_memory),
    flag(
        "enable-nesting", "kvm-84", "0.15", "KVM inside the guest", nesting, "-cpu …,+svm or +vmx"
    ),
    flag(
        "enable-kqemu",
        "0.11",
        "0.12",
        "use kqemu, the kernel module before KVM",
        with_kvm,
        "-accel kvm",
        "kqemu is dead; KVM does the same",
    ),
    flag(
        "kernel-kqemu",
        "0.8",
        "0.12",
        "use kqemu for the guest's kernel too",
        with_kvm,
        "-accel kvm",
        "kqemu is dead; KVM does the same",
    ),
    flag("no-kqemu", "0.8", "0.11", "do not use kqemu", without_kvm, "-accel tcg"),
    flag(
        "no-code-copy",
        "0.8",
        "kvm-72",
        "switch off an old trick of the translator",
        drop,
        "",
        "the trick is gone",
    ),
    valued(
        "tb-size", "kvm-72", "6.0", "translation cache in MiB", cache_size, "-accel tcg,tb-size="
    ),
)
