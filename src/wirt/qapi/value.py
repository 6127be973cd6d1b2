"""Values as QEMU's QAPI has them, and the command-line arguments made of them.

The same dict serves ``-blockdev JSON`` at the start and ``blockdev-add`` while running;
likewise ``-device``/``device_add``, ``-netdev``/``netdev_add``, ``-object``/``object-add``.
"""

from __future__ import annotations

import msgspec

QapiScalar = str | int | bool
QapiValue = QapiScalar | list["QapiValue"] | dict[str, "QapiValue"]
QapiObject = dict[str, QapiValue]


class Argument(msgspec.Struct, frozen=True):
    """One option of QEMU's command line.

    ``value`` is a dict that QEMU takes as JSON (``json``) or as key=value, a word as it is,
    or None for an option alone.
    """

    option: str
    value: QapiObject | str | None = None
    json: bool = False


def blockdev(value: QapiObject) -> Argument:
    return Argument("-blockdev", value, json=True)


def device(value: QapiObject) -> Argument:
    return Argument("-device", value, json=True)


def netdev(value: QapiObject) -> Argument:
    return Argument("-netdev", value, json=True)


def user_object(value: QapiObject) -> Argument:
    return Argument("-object", value, json=True)
