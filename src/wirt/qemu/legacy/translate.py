"""A whole line: notes for each option, and the machine unless something cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from wirt.errors import WirtError
from wirt.qapi.capabilities import Capabilities
from wirt.qapi.value import QapiObject
from wirt.qemu.compile import arguments
from wirt.qemu.legacy.assemble import assemble
from wirt.qemu.legacy.draft import Draft
from wirt.qemu.legacy.facts import Facts
from wirt.qemu.legacy.line import DISK, IMAGE_TOOLS, Given, program_of, read
from wirt.qemu.legacy.note import Note, Outcome, Refused
from wirt.qemu.legacy.option import Option
from wirt.qemu.legacy.options import BY_NAME, takes_value
from wirt.qemu.legacy.options.devices import plug
from wirt.qemu.legacy.simplify import simplify
from wirt.qemu.render import argv
from wirt.qemu.runtime import Runtime
from wirt.spec import toml
from wirt.spec.machine import Machine


class Translation(msgspec.Struct, frozen=True):
    """What a line means today.

    ``machine`` is None for a line that is refused or only asks something (``query``).
    ``process`` says how to run QEMU; ``uplinks`` are for ``Runtime``.
    """

    program: str
    notes: tuple[Note, ...]
    machine: Machine | None = None
    process: tuple[str, ...] = ()
    uplinks: dict[str, QapiObject] = msgspec.field(default_factory=dict)
    query: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[Note, ...]:
        """The options that cannot be had."""
        return tuple(note for note in self.notes if note.status == "refused")


def translate(words: Sequence[str], facts: Facts, capabilities: Capabilities) -> Translation:
    """Return what the line means. Every refusal is a note: nothing is raised for one."""
    program, rest = program_of(words)
    if program in IMAGE_TOOLS:
        return Translation(program, (_image_tool(program),))
    draft = Draft(program, facts, capabilities)
    given = read(rest, takes_value)
    notes = {one.position: _apply(draft, one) for one in given}
    for one in draft.devices:
        notes[one.position] = _plug(draft, one)
    ordered = tuple(notes[one.position] for one in given)
    if draft.query and not any(note.status == "refused" for note in ordered):
        return Translation(program, ordered, query=tuple(draft.query))
    return _finish(draft, ordered)


def _image_tool(program: str) -> Note:
    why = "this is a line of the image tool, which makes and converts disks: it is no machine"
    return Note(program, "", "refused", "", "kvm-img runs it, wirt img does the same", why)


def _finish(draft: Draft, notes: tuple[Note, ...]) -> Translation:
    if any(note.status == "refused" for note in notes):
        return Translation(draft.program, notes, warnings=tuple(draft.warnings))
    try:
        machine, uplinks = assemble(draft)
        _check(machine)
        machine = simplify(machine, draft.capabilities)
    except Refused as refusal:
        notes = (*notes, _of_line(refusal.why, refusal.today))
        return Translation(draft.program, notes, warnings=tuple(draft.warnings))
    except WirtError as error:
        notes = (*notes, _of_line(error.message, error.hint))
        return Translation(draft.program, notes, warnings=tuple(draft.warnings))
    return Translation(
        draft.program, notes, machine, tuple(draft.process), uplinks,
        warnings=tuple(dict.fromkeys(draft.warnings)),
    )  # fmt: skip


def _check(machine: Machine) -> None:
    """Hold the machine to everything that a description must be. Raises SpecError."""
    import msgspec

    toml.from_data(msgspec.to_builtins(machine))


def _of_line(why: str, today: str) -> Note:
    return Note("", "", "refused", "", today, why)


def _apply(draft: Draft, given: Given) -> Note:
    option = BY_NAME.get(given.option)
    if option is None:
        return _unknown(given)
    try:
        if option.takes_value and not given.has_value:
            raise Refused("a value must follow")
        outcome = option.act(draft, given) or Outcome()
    except Refused as refusal:
        return _note(option, given, Outcome("refused", refusal.today, refusal.why))
    if given.attached:
        why = f"QEMU never took -{given.option}=: read as -{given.option} {given.value}"
        outcome = replace(outcome, status="translated", why=why)
    return _note(option, given, outcome)


def _plug(draft: Draft, given: Given) -> Note:
    option = BY_NAME["device"]
    try:
        return _note(option, given, plug(draft, given))
    except Refused as refusal:
        return _note(option, given, Outcome("refused", refusal.today, refusal.why))


def _note(option: Option, given: Given, outcome: Outcome) -> Note:
    shown = "" if option.name == DISK else f"-{option.name}"
    same = outcome.status == "same"
    today = outcome.today or (option.today if outcome.status == "translated" else "")
    return Note(
        option=shown,
        value=given.value,
        status=outcome.status,
        removed_in=option.removed_in,
        today=today or (shown if same else ""),
        why=outcome.why or ("" if same else option.why),
        meaning=option.meaning,
        since=option.since,
    )


def _unknown(given: Given) -> Note:
    import difflib

    near = difflib.get_close_matches(given.option, BY_NAME, n=1)
    today = f"did you mean -{near[0]}?" if near else "kvm --help"
    why = "no QEMU ever had this option"
    return Note(f"-{given.option}"[:80], given.value, "refused", "", today, why)


def todays_line(
    translation: Translation, runtime: Runtime, capabilities: Capabilities, binary: str
) -> list[str]:
    """Return QEMU's line for a translated machine. Raises SpecError, MissingDependency."""
    if translation.machine is None:
        return [binary, *translation.query]
    runtime = replace(runtime, uplinks={**runtime.uplinks, **translation.uplinks})
    line = argv(binary, arguments(translation.machine, runtime, capabilities))
    return [*line, *translation.process]
