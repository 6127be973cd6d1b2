"""One declaration per setting: a field's annotation carries its help, unit and CLI flags.

TOML keys, the JSON schema, command-line flags and the tables of the documentation are all
derived from these annotations; nothing about a setting is said twice.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


def setting(description: str, *, flags: tuple[str, ...] = ()) -> msgspec.Meta:
    """Annotate a field. ``flags`` are its names on the command line of run, create and set."""
    return msgspec.Meta(description=description, extra={"flags": flags})


def text(
    description: str,
    *,
    flags: tuple[str, ...] = (),
    pattern: str = r"^[^\x00-\x1f\x7f]*$",
    max_length: int = 4096,
) -> msgspec.Meta:
    """Annotate a string field; by default all but control characters is allowed.

    The text reaches command lines, logs and terminals.
    """
    return msgspec.Meta(
        description=description, pattern=pattern, max_length=max_length, extra={"flags": flags}
    )


def number(
    description: str, *, ge: int, le: int = (1 << 63) - 1, flags: tuple[str, ...] = ()
) -> msgspec.Meta:
    """Annotate an integer field with its bounds."""
    return msgspec.Meta(description=description, ge=ge, le=le, extra={"flags": flags})


Index = Annotated[int, msgspec.Meta(ge=0, le=255)]
"""A small number, for use inside ``Index | None``."""


def size(
    description: str, *, flags: tuple[str, ...] = (), default_unit: str = "", ge: int = 0
) -> msgspec.Meta:
    """Annotate an integer field that holds bytes and is written ``512M`` or ``1.5G``."""
    return msgspec.Meta(
        description=description,
        ge=ge,
        le=(1 << 63) - 1,
        extra={"unit": "bytes", "default_unit": default_unit, "flags": flags},
        extra_json_schema={"type": ["integer", "string"], "examples": ["512M", "1.5G"]},
    )


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Names of machines: also names of directories, hosts and QEMU objects."""

ID_PATTERN = r"^([A-Za-z][A-Za-z0-9._-]{0,30})?$"
"""Identifiers of devices, as QEMU allows them; empty means: numbered by wirt."""

SLOT_PATTERN = r"^([0-9a-f]{1,2}(\.[0-7])?)?$"
"""Places on the root PCI bus: slot and, after a dot, function, in hexadecimal."""

MAC_PATTERN = r"^([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5})?$"
