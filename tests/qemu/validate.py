"""A value checked against a recorded QMP schema (see record_capabilities.py)."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Schema:
    def __init__(self, version: str) -> None:
        record = json.loads((HERE / "schema" / f"{version}.json").read_text())
        self.entities: dict[str, Any] = record["entities"]
        self.devices: dict[str, list[str]] = record["devices"]

    def problems(self, kind: str, value: Any, path: str = "") -> list[str]:
        """Return what is wrong with ``value`` as the type ``kind``; deprecated members too."""
        entity = self.entities[kind]
        if "any" in entity:
            found = [self.problems(option, value, path) for option in entity["any"]]
            return min(found, key=len)
        if "values" in entity:
            known = value in entity["values"]
            return [] if known else [f"{path}: {value!r} is not of {entity['values']}"]
        if "items" in entity:
            if not isinstance(value, list):
                return [f"{path}: not a list: {value!r}"]
            return [p for item in value for p in self.problems(entity["items"], item, path + "[]")]
        if "type" in entity:
            return self._builtin(entity["type"], value, path)
        return self._object(entity, value, path)

    def _builtin(self, kind: str, value: Any, path: str) -> list[str]:
        if kind == "value":
            return []
        types = {"string": str, "int": int, "boolean": bool, "number": (int, float), "null": None}
        wanted = types[kind]
        good = value is None if wanted is None else isinstance(value, wanted)
        if kind == "int" and isinstance(value, bool):
            good = False
        return [] if good else [f"{path}: {value!r} is not a {kind}"]

    def _object(self, entity: dict[str, Any], value: Any, path: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{path}: not an object: {value!r}"]
        members, required, deprecated = self._flat(entity, value)
        found = [f"{path}.{name} is missing" for name in required if name not in value]
        for name, item in value.items():
            if name not in members:
                found.append(f"{path}.{name} is unknown")
            else:
                found += self.problems(members[name], item, f"{path}.{name}")
            if name in deprecated:
                found.append(f"{path}.{name} is deprecated")
        return found

    def _flat(self, entity: dict[str, Any], value: Any) -> tuple[dict[str, str], list[str], set]:
        members = dict(entity["members"])
        required, deprecated = list(entity["required"]), set(entity["deprecated"])
        if "tag" in entity:
            variant = entity["variants"].get(value.get(entity["tag"]))
            if variant:
                more = self._flat(self.entities[variant], value)
                members |= more[0]
                required += more[1]
                deprecated |= more[2]
        return members, required, deprecated
