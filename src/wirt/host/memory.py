"""The host's memory: how much is left, and what stretches it (same-page merging, huge pages)."""

from __future__ import annotations

import os
import re

from wirt.host.finding import Finding, Status
from wirt.host.kernel import read_line
from wirt.units import GIB, MIB, format_size

_KSM = "/sys/kernel/mm/ksm"
_HUGE = "/sys/kernel/mm/hugepages"
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_SHORT = GIB
_NONE = 128 * MIB


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo: name → bytes (or a plain count)."""
    found = {}
    for name, number, unit in re.findall(r"(?m)^(\S+):\s+(\d{1,18})( kB)?$", text):
        found[name] = int(number) * (1024 if unit else 1)
    return found


def memory() -> list[Finding]:
    """Examine memory."""
    facts = parse_meminfo(read_line("/proc/meminfo"))
    return [
        judge_space(facts.get("MemTotal", 0), facts.get("MemAvailable", 0)),
        _same_page_merging(),
        _huge_pages(),
        _transparent_huge_pages(),
    ]


def judge_space(total: int, available: int) -> Finding:
    """Say whether a machine fits in. Sizes in bytes."""
    detail = f"{_rounded(available)} of {_rounded(total)} available"
    if available >= _SHORT:
        return Finding("memory", "memory", "ok", detail)
    status: Status = "warn" if available >= _NONE else "fail"
    return Finding("memory", "memory", status, detail, "stop machines (wirt ls) or programs")


def _rounded(size: int) -> str:
    return format_size(size // MIB * MIB)


def _same_page_merging() -> Finding:
    running = read_line(f"{_KSM}/run")
    if running == "1":
        pages = read_line(f"{_KSM}/pages_sharing")
        saved = int(pages) * os.sysconf("SC_PAGE_SIZE") if pages.isdigit() else 0
        return Finding("ksm", "same-page merging", "ok", f"on, saves {_rounded(saved)}")
    if not running:
        return Finding("ksm", "same-page merging", "info", "not in this kernel (CONFIG_KSM)")
    cure = f"echo 1 > {_KSM}/run"
    return Finding("ksm", "same-page merging", "info", "off: equal pages are kept twice", cure)


def _huge_pages() -> Finding:
    found = []
    for name in sorted(os.listdir(_HUGE)) if os.path.isdir(_HUGE) else ():
        reserved, free = (read_line(f"{_HUGE}/{name}/{key}_hugepages") for key in ("nr", "free"))
        kilobytes = name.removeprefix("hugepages-").removesuffix("kB")
        if kilobytes.isdigit() and reserved not in {"", "0"}:
            found.append(f"{free} of {reserved} pages of {format_size(int(kilobytes) * 1024)} free")
    if found:
        return Finding("hugepages", "reserved huge pages", "ok", ", ".join(found))
    cure = "sysctl vm.nr_hugepages=N (2 MiB each), for machines that ask for them"
    return Finding("hugepages", "reserved huge pages", "info", "none are reserved", cure)


def _transparent_huge_pages() -> Finding:
    chosen = re.search(r"\[(\w+)\]", read_line(_THP))
    ident, title = "thp", "transparent huge pages"
    if chosen is None:
        return Finding(ident, title, "info", "not in this kernel")
    if chosen[1] == "never":
        return Finding(ident, title, "warn", "never: guests are slower", f"echo madvise > {_THP}")
    return Finding(ident, title, "ok", chosen[1])
