"""``--object secret,…``: passphrases by id."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.keyvalue import parse_list

_LARGEST = 1 << 20


class Secrets:
    """The secrets of one command."""

    def __init__(self, definitions: Sequence[str] = ()) -> None:
        self._known: dict[str, bytes] = {}
        for text in definitions:
            self._define(text)

    def __getitem__(self, name: str) -> bytes:
        if name not in self._known:
            raise Failure(f"No secret with id '{name}'")
        return self._known[name]

    def _define(self, text: str) -> None:
        given = _definition(text)
        kind, name = given.get("qom-type", ""), given.get("id", "")
        if not kind:
            raise Failure("Parameter 'qom-type' is missing")
        if not name:
            raise Failure("Parameter 'id' is missing")
        if kind in {"throttle-group", "iothread"}:
            return  # they concern the speed of a running machine
        if kind != "secret":
            raise Failure(f"Invalid parameter '{kind}'")
        if name in self._known:
            raise Failure(
                f"attempt to add duplicate property '{name}' to object (type 'container')"
            )
        self._known[name] = _load(given)


def _definition(text: str) -> dict[str, str]:
    if not text.startswith("{"):
        return dict(parse_list(text, first="qom-type"))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Failure(f"JSON parse error, {error}") from error
    return {str(key): str(item) for key, item in value.items()}


def _load(given: dict[str, str]) -> bytes:
    if "keyid" in given:
        raise Failure("encrypted secrets are not supported: give the passphrase itself")
    if "file" in given and "data" in given:
        raise Failure("'file' and 'data' are mutually exclusive")
    if "file" in given:
        raw = _read(given["file"])
    elif "data" in given:
        raw = given["data"].encode("utf-8", "surrogateescape")
    else:
        raise Failure("Must provide 'file' or 'data'")
    if given.get("format", "raw") == "base64":
        try:
            return base64.b64decode(raw, validate=False)
        except binascii.Error as error:
            raise Failure("Unable to decode the secret: it is no base64") from error
    return raw


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise Failure(
            f"Unable to read {path}: Failed to open file “{path}”: {error.strerror}"
        ) from error
