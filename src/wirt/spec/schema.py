"""The JSON schema of a machine description, for editors and other programs."""

from __future__ import annotations

from typing import Any

import msgspec

from wirt.spec.machine import Machine


def machine_schema() -> dict[str, Any]:
    """Return JSON Schema 2020-12 of a machine."""
    schema = msgspec.json.schema(Machine)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A machine of wirt",
        **schema,
    }
