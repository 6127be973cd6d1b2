"""Block nodes and objects of newer lines; what a disk or the memory takes is theirs."""

from __future__ import annotations

from typing import Any

from wirt.qemu.block import FORMATS
from wirt.qemu.legacy.draft import Draft, Drive, Node
from wirt.qemu.legacy.line import Given
from wirt.qemu.legacy.note import Outcome, Refused
from wirt.qemu.legacy.option import valued
from wirt.qemu.legacy.values import flatten, parse, parse_json

_COMMON = {"node-name", "driver", "read-only", "discard", "cache.direct", "cache.no-flush",
           "detect-zeroes"}  # fmt: skip
_FILE = _COMMON | {"filename", "aio"}
_FORMAT = _COMMON | {"file", "backing"}
_THROTTLE = {"node-name", "driver", "throttle-group", "file", "read-only", "discard",
             "detect-zeroes"}  # fmt: skip
_LIMITS = {
    "bps-total": "bytes_total", "bps-read": "bytes_read", "bps-write": "bytes_write",
    "iops-total": "iops_total", "iops-read": "iops_read", "iops-write": "iops_write",
}  # fmt: skip


def _parts(text: str, first: str) -> dict[str, str]:
    if text.startswith("{"):
        return dict(flatten(parse_json(text)))
    return dict(parse(text, first=first))


def blockdev(draft: Draft, given: Given) -> Outcome | None:
    """A node of the block graph."""
    parts = _parts(given.value, "driver")
    name = parts.get("node-name", "") or draft.fresh("-node")
    draft.nodes[name] = Node(parts, given.words, given.position)
    return Outcome("same")


def object_(draft: Draft, given: Given) -> Outcome | None:
    """An object."""
    if given.value in {"?", "help"}:
        draft.query = ["-object", "help"]
        return None
    parts = _parts(given.value, "qom-type")
    name = parts.get("id", "")
    if not name:
        raise Refused("an -object needs id=")
    draft.objects[name] = Node(parts, given.words, given.position)
    return Outcome("same")


def add_fd(draft: Draft, given: Given) -> Outcome | None:
    """A descriptor that QEMU inherits, in a set."""
    parts = dict(parse(given.value))
    fd = parts.get("fd", "")
    if fd.isdigit() and int(fd) in draft.facts.fd_images:
        draft.fd_sets[parts.get("set", "")] = draft.facts.fd_images[int(fd)]
    else:
        draft.args += given.words
    return Outcome("same")


def resolve(draft: Draft, name: str) -> Drive | None:
    """Return the disk that the nodes below ``name`` are, and take them; None if they are not.

    Only what the spec can say is taken: file and format, and the throttle above them.
    """
    taken: list[Node] = []
    settings: dict[str, Any] = {}
    node = draft.nodes.get(name)
    if node and node.parts.get("driver") == "throttle":
        group = draft.objects.get(node.parts.get("throttle-group", ""))
        if group is None or not set(node.parts) <= _THROTTLE:
            return None
        settings["throttle"] = _limits(group)
        _zeroes(node, settings)
        taken += [node, group]
        node = draft.nodes.get(node.parts.get("file", ""))
    drive = _image(draft, node, settings, taken)
    if drive is None:
        return None
    for one in taken:
        one.used = True
    drive.position = min(one.position for one in taken)
    return drive


def _limits(group: Node) -> dict[str, int]:
    found = {}
    for key, setting in _LIMITS.items():
        text = group.parts.get(f"limits.{key}", group.parts.get(f"x-{key}", "0"))
        if text.isdigit() and int(text):
            found[setting] = int(text)
    return found


def _zeroes(node: Node, settings: dict[str, Any]) -> None:
    zeroes = node.parts.get("detect-zeroes", "off")
    if zeroes != "off":
        settings["detect_zeroes"] = zeroes


def _image(
    draft: Draft, node: Node | None, settings: dict[str, Any], taken: list[Node]
) -> Drive | None:
    if node is None or node.parts.get("driver") not in FORMATS or not set(node.parts) <= _FORMAT:
        return None
    file = draft.nodes.get(node.parts.get("file", ""))
    if file is None or not set(file.parts) <= _FILE:
        return None
    if file.parts.get("driver") not in {"file", "host_device", "host_cdrom"}:
        return None
    taken += [node, file]
    if "backing" in node.parts:
        base = _image(draft, draft.nodes.get(node.parts["backing"]), {}, taken)
        if base is None:
            return None
        filename, image_format = base.file, base.image_format
        settings["discard_writes"] = True
    else:
        filename, image_format = _filename(draft, file), node.parts["driver"]
    _settings(node, file, settings)
    return Drive(filename, image_format=image_format, settings=settings)


def _filename(draft: Draft, file: Node) -> str:
    path = file.parts.get("filename", "")
    if path.startswith("/dev/fdset/"):
        return draft.fd_sets.get(path.removeprefix("/dev/fdset/"), path)
    return draft.facts.own_path(path)


def _settings(node: Node, file: Node, settings: dict[str, Any]) -> None:
    parts = node.parts
    direct = parts.get("cache.direct") == "on"
    no_flush = parts.get("cache.no-flush") == "on"
    settings["cache"] = "unsafe" if no_flush else "none" if direct else "writeback"
    if file.parts.get("aio", "threads") != "threads":
        settings["aio"] = file.parts["aio"]
    if parts.get("discard", "ignore") in {"unmap", "on"}:
        settings["discard"] = "unmap"
    else:
        settings["discard"] = "ignore"
    if parts.get("read-only") == "on":
        settings["read_only"] = True
    _zeroes(node, settings)


OPTIONS = (
    valued("blockdev", "2.9", "", "a node of the block graph", blockdev),
    valued("object", "1.3", "", "an object: memory, secrets, filters …", object_),
    valued("add-fd", "1.3", "", "a descriptor that QEMU inherits", add_fd),
)
