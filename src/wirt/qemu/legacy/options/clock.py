"""The real-time clock and what drives the guest's time."""

from __future__ import annotations

import re

from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import drop, flag, process, valued
from wirt.qemu.legacy.values import parse

_DATE = r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d)?"


def localtime(draft: Draft, _given: Given) -> Outcome | None:
    """The clock shows local time, as Windows wants it."""
    draft.rtc["base"] = "localtime"
    return None


def startdate(draft: Draft, given: Given) -> Outcome | None:
    """The clock starts at a date."""
    draft.rtc["base"] = _base("utc" if given.value == "now" else given.value)
    return None


def _base(text: str) -> str:
    base = re.sub(r"(?<=[-T:])(\d)(?=[-T:]|$)", r"0\1", text)
    if not re.fullmatch(f"utc|localtime|{_DATE}", base):
        raise Refused(f"{text[:40]!r} is not a date", "like 2006-06-17T16:01:21")
    return base


def rtc(draft: Draft, given: Given) -> Outcome | None:
    """Base, clock and drift fix."""
    values = parse(given.value, first="base")
    base = values.take("base")
    if base:
        draft.rtc["base"] = _base(base)
    clock = values.take("clock", default="host")
    if clock not in {"host", "rt", "vm"}:
        raise Refused(f"clock={clock[:20]}", "host, rt or vm")
    if clock != "host":
        draft.rtc["clock"] = clock
    if values.take("driftfix", default="none") == "slew":
        draft.rtc["drift_fix"] = True
    left = [key for key, _ in values]
    if left:
        raise Refused(f"-rtc never had {left[0][:30]}=", "base=, clock=, driftfix=")
    return Outcome("same")


def drift(draft: Draft, _given: Given) -> Outcome | None:
    """Lost ticks are made up for."""
    draft.rtc["drift_fix"] = True
    return None


def source(_draft: Draft, given: Given) -> Outcome | None:
    """Which timer of the host QEMU used."""
    if given.value in {"?", "help"}:
        return Outcome("dropped", why="there is nothing to choose from any more")
    return Outcome("dropped", why="QEMU uses the kernel's exact timers: there is no choice left")


def icount(draft: Draft, given: Given) -> Outcome | None:
    """The guest's time follows its instructions: software only."""
    draft.settings["accelerator"] = "tcg"
    text = given.value
    if not re.match(r"(\d+|auto|shift=)", text):
        raise Refused(f"{text[:20]!r}", "-icount auto or -icount shift=N")
    return process(draft, Given(given.option, text, given.position, has_value=True))


OPTIONS = (
    flag("localtime", "0.8", "3.1", "the clock shows local time", localtime, "-rtc base=localtime"),
    valued("startdate", "0.9", "3.1", "the clock starts at a date", startdate, "-rtc base="),
    valued("rtc", "0.12", "", "base, source and drift fix of the clock", rtc),
    flag(
        "rtc-td-hack",
        "0.10",
        "3.1",
        "make up for lost ticks of the clock (Windows)",
        drift,
        "-rtc driftfix=slew",
    ),
    valued("clock", "0.9", "by 7.2", "which timer of the host to use", source),
    valued("icount", "kvm-72", "", "time follows the instructions", icount),
    flag(
        "no-rtc",
        "kvm-17",
        "kvm-60",
        "do not use the host's RTC as timer",
        drop,
        "",
        "the host's RTC is not used anyway",
    ),
)
