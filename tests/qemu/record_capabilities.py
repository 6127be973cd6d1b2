"""Record what a QEMU binary says about itself, as the tests of the compiler use it.

    python -m tests.qemu.record_capabilities [BINARY]

Writes ``capabilities/X.Y.json`` (what ``wirt`` keeps in its cache) and ``schema/X.Y.json``
(the part of ``query-qmp-schema`` behind the commands whose JSON wirt writes, and the
properties of the devices that the golden machines use). Run it for a new QEMU version, from
the repository's root; the golden machines must have been made with ``regolden`` before.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from wirt.host.process import find_program
from wirt.host.qemu_probe import ask
from wirt.protocols.qmp.client import QmpClient
from wirt.qapi.capabilities import Identity

HERE = Path(__file__).parent
COMMANDS = ("blockdev-add", "netdev_add", "object-add", "chardev-add")
UNKNOWN = Identity("/usr/bin/qemu-system-x86_64", 0, 0, 0)


def main(binary: str) -> None:
    path = find_program(binary)
    capabilities = ask(path, UNKNOWN)
    version = f"{capabilities.version[0]}.{capabilities.version[1]}"
    tidy = json.loads(msgspec.json.encode(capabilities, order="sorted"))
    (HERE / "capabilities" / f"{version}.json").write_text(lines(tidy))
    schema, devices = interrogate(path)
    record = {"entities": reachable(schema), "devices": devices}
    (HERE / "schema" / f"{version}.json").write_text(lines(record))


def lines(tree: dict[str, Any]) -> str:
    """Two levels deep, so that a difference between versions can be read."""
    out = []
    for key, value in tree.items():
        if isinstance(value, dict):
            inner = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            out.append(f"{json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n}")
        else:
            out.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(out) + "\n}\n"


def interrogate(path: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    ours, theirs = socket.socketpair()
    monitor = ["-chardev", f"socket,id=q,fd={theirs.fileno()}", "-mon", "chardev=q,mode=control"]
    process = subprocess.Popen(
        [path, "-M", "none", "-nodefaults", "-display", "none", "-S", *monitor],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    try:
        with QmpClient.from_socket(ours, timeout=60) as qmp:
            schema = qmp.execute("query-qmp-schema", reply=list[dict[str, Any]])
            types = qmp.execute(
                "qom-list-types",
                {"implements": "device", "abstract": False},
                reply=list[dict[str, Any]],
            )
            known = {item["name"] for item in types}
            devices = {name: properties(qmp, name) for name in sorted(used_devices() & known)}
            return schema, devices
    finally:
        process.kill()
        process.wait()


def properties(qmp: QmpClient, name: str) -> list[str]:
    found = qmp.execute("device-list-properties", {"typename": name}, reply=list[dict[str, Any]])
    return sorted(item["name"] for item in found)


def used_devices() -> set[str]:
    found = set()
    for golden in (HERE / "golden").glob("*.argv"):
        for line in golden.read_text().splitlines():
            option, _, value = line.partition(" ")
            if option == "-device" and value.startswith("{"):
                found.add(json.loads(value)["driver"])
    return found


def reachable(schema: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entities behind COMMANDS, renumbered in the order of discovery."""
    entities = {entity["name"]: entity for entity in schema}
    names = {entities[command]["arg-type"]: command for command in COMMANDS}
    todo = list(names)
    while todo:
        for name in children(entities[todo.pop(0)]):
            if name not in names:
                names[name] = str(len(names))
                todo.append(name)
    return {new: tidy(entities[old], names) for old, new in names.items()}


def children(entity: dict[str, Any]) -> list[str]:
    return [
        *([entity["element-type"]] if "element-type" in entity else []),
        *(member["type"] for member in entity.get("members", []) if "type" in member),
        *(variant["type"] for variant in entity.get("variants", [])),
    ]


def tidy(entity: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return one type in few words: what the check of a value needs."""
    match entity["meta-type"]:
        case "enum":
            return {"values": entity["values"]}
        case "array":
            return {"items": names[entity["element-type"]]}
        case "alternate":
            return {"any": [names[member["type"]] for member in entity["members"]]}
        case "builtin":
            return {"type": entity["json-type"]}
    found: dict[str, Any] = {"required": [], "optional": {}, "deprecated": []}
    for member in entity["members"]:
        found["optional"][member["name"]] = names[member["type"]]
        if "default" not in member:
            found["required"].append(member["name"])
        if "deprecated" in member.get("features", []):
            found["deprecated"].append(member["name"])
    found["members"] = found.pop("optional")
    if "tag" in entity:
        found["tag"] = entity["tag"]
        found["variants"] = {item["case"]: names[item["type"]] for item in entity["variants"]}
    return found


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "qemu-system-x86_64")
