"""What a file name on the command line, or in an image, stands for.

A name is a path, ``PROTOCOL:rest``, or ``json:{…}``: a tree of drivers. ``--image-opts``
gives the same tree as ``driver=qcow2,file.filename=…``. Trees are kept nested here, and
flat (``file.filename``) only where they enter.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.json_text import compact
from wirt.cli.kvm_img.keyvalue import parse_list

_PROTOCOL = re.compile(r"[^:/]+:")
_DEEPEST = 32
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')

Tree = dict[str, Any]


def protocol_of(name: str) -> str:
    """Return the protocol that a name begins with, or nothing."""
    found = _PROTOCOL.match(name)
    return found[0][:-1] if found else ""


def parse_json_name(name: str) -> Tree:
    """Return the tree of a ``json:{…}`` name. Raises Failure."""
    text = _TOKEN.sub(_double_quoted, name.removeprefix("json:"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"Could not parse the JSON options: {error}") from error
    if not isinstance(value, dict):
        raise Failure("Invalid JSON object given")
    return nested(value.items())


def _double_quoted(found: re.Match[str]) -> str:
    """QEMU takes strings in single quotes too."""
    token = found[0]
    if token[0] == '"':
        return token
    return '"' + token[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'


def parse_image_options(text: str) -> Tree:
    """Return the tree of ``--image-opts``; a first word without name is the file."""
    return nested(parse_list(text, first="file"))


def nested(pairs: Iterable[tuple[str, Any]], depth: int = 0) -> Tree:
    """Turn dotted keys into nested dictionaries. Raises Failure where they contradict."""
    if depth > _DEEPEST:
        raise Failure("the description of the image is nested too deeply")
    tree: Tree = {}
    for key, given in pairs:
        value = nested(given.items(), depth + 1) if isinstance(given, dict) else given
        head, dot, rest = key.partition(".")
        if not dot:
            tree[head] = _merged(tree.get(head), value)
            continue
        inner = tree.setdefault(head, {})
        if not isinstance(inner, dict):
            inner = tree[head] = {}
        addition = nested([(rest, value)], depth + 1)
        tree[head] = _merged(inner, addition)
    return tree


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def json_name(tree: Tree) -> str:
    """Return the ``json:`` name of a tree."""
    return "json:" + compact(tree)


def beside(referrer: str, name: str) -> str:
    """Return what ``name`` inside the image at ``referrer`` means for us."""
    if protocol_of(name) or os.path.isabs(name):
        return name
    if protocol_of(referrer) == "file":
        referrer = referrer.removeprefix("file:")
    folder = os.path.dirname(referrer)
    return f"{folder}/{name}" if folder not in {"", "/"} else f"{folder}{name}"
