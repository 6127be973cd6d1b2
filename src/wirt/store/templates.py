"""Warm images: states frozen after a first boot, kept to start the same machine at once.

A template is a record that names a state, and a hold on that state. The hold comes first and
goes last, so a killed command leaves at most a hold without a record: ``sweep`` drops it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import msgspec

from wirt.errors import NotFound, WirtError
from wirt.store.layout import Home, private_directory
from wirt.store.locks import try_lock
from wirt.store.record_file import VERSION, names_in, read_file, replace_file
from wirt.store.states import State, collect, find_state, hold, holds, release, state_ids

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_HOLD = "template-"


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A warm image. ``created`` in Unix seconds."""

    version: int = VERSION
    fingerprint: str
    """Of all that decides whether the state fits: 16 hexadecimal digits."""
    kind: str
    """Of what a user asked for: a newer template of the same kind replaces this one."""
    image: str
    image_id: str
    state: str
    created: float
    memory: int
    """The guest's memory in bytes."""
    vcpus: int


def template_names(home: Home) -> list[str]:
    """Return the fingerprints of all templates."""
    return names_in(home.templates, _FINGERPRINT)


def read_template(home: Home, fingerprint: str) -> Template:
    """Return a template by its fingerprint, or by the beginning of one.

    Raises NotFound, HostError for a record that is damaged.
    """
    matching = [name for name in template_names(home) if name.startswith(fingerprint)]
    if len(matching) != 1 or not fingerprint:
        what = "is more than one" if matching else "is no template"
        raise NotFound(f"{fingerprint[:40]!r} {what}", hint="wirt template ls")
    cure = f"wirt template rm {matching[0]}"
    template = read_file(home.template(matching[0]), Template, cure=cure)
    if template is None:
        raise NotFound(f"there is no template {fingerprint}", hint="wirt template ls")
    return template


def templates(home: Home) -> list[Template]:
    """Return all templates that can be read, the least recently used first."""
    found = []
    for name in template_names(home):
        with contextlib.suppress(WirtError):
            found.append((used(home, name), read_template(home, name)))
    return [template for _, template in sorted(found, key=lambda pair: pair[0])]


def used(home: Home, fingerprint: str) -> float:
    """Return when the template was used last, in Unix seconds; 0 if it is gone."""
    try:
        return os.stat(home.template(fingerprint)).st_mtime
    except FileNotFoundError:
        return 0.0


def touch(home: Home, fingerprint: str) -> None:
    """Say that the template is used now."""
    with contextlib.suppress(OSError):
        os.utime(home.template(fingerprint))


@contextlib.contextmanager
def making(home: Home, fingerprint: str) -> Iterator[bool]:
    """Hold the lock of a template in the making; False if somebody else has it."""
    private_directory(home.templates)
    lock = try_lock(home.template_lock(fingerprint))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def hold_label(fingerprint: str) -> str:
    """Return by what the state of a template is held."""
    return _HOLD + fingerprint


def add_template(home: Home, template: Template, state: State) -> None:
    """Make ``state`` a template."""
    hold(state, hold_label(template.fingerprint))
    replace_file(home.template(template.fingerprint), template)


def remove_template(home: Home, fingerprint: str) -> None:
    """Remove a template; its state goes when no machine stands on it. Raises NotFound."""
    try:
        os.unlink(home.template(fingerprint))
    except FileNotFoundError:
        raise NotFound(f"there is no template {fingerprint}", hint="wirt template ls") from None
    sweep(home)


def sweep(home: Home) -> None:
    """Let go of states that no record names as a template any more."""
    named = {(one.fingerprint, one.state) for one in templates(home)}
    for ident in state_ids(home):
        for label in holds(home.state(ident)):
            fingerprint = label.removeprefix(_HOLD)
            if label == fingerprint or (fingerprint, ident) in named:
                continue
            _let_go(home, ident, fingerprint)


def _let_go(home: Home, ident: str, fingerprint: str) -> None:
    with making(home, fingerprint) as ours, contextlib.suppress(WirtError):
        if ours:
            release(find_state(home, ident), hold_label(fingerprint))
            collect(home, ident)
