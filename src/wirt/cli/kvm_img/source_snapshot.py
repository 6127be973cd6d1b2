"""``-l``: the disk of an internal snapshot instead of the image's own."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.failure import Failure
from wirt.cli.kvm_img.keyvalue import parse_list
from wirt.cli.kvm_img.opening import Opened
from wirt.errors import NotFound
from wirt.image.base import HasSnapshots, Image, SnapshotInfo

_BASE = "snapshot."


def chosen_disk(opened: Opened, wanted: str | None) -> Image:
    """Return the disk that ``-l`` names: an id or name, or ``snapshot.id=…,snapshot.name=…``."""
    if wanted is None:
        return opened.image
    image = opened.image
    view = getattr(image, "snapshot_view", None)
    if view is None or not isinstance(image, HasSnapshots):
        raise Failure(
            f"Failed to load snapshot: Device '{opened.name}' does not support internal snapshots"
        )
    try:
        disk: Image = view(_identity(image, wanted))
    except NotFound:
        raise Failure("Failed to load snapshot: Can't find snapshot") from None
    return disk


def check_snapshot_options(texts: Sequence[str]) -> None:
    """Refuse an ``-l`` that begins with ``snapshot.`` and names anything unknown."""
    for text in texts:
        if text.startswith(_BASE):
            unknown = dict(parse_list(text)).keys() - {"snapshot.id", "snapshot.name"}
            if unknown:
                raise Failure(
                    f"Invalid parameter '{unknown.pop()}'\n"
                    f"Failed in parsing snapshot param '{text}'"
                )


def _identity(image: HasSnapshots, wanted: str) -> str:
    if not wanted.startswith(_BASE):
        return wanted
    given = dict(parse_list(wanted))
    fitting = [item for item in image.snapshots() if _fits(item, given)]
    if not fitting:
        raise Failure("Failed to load snapshot: Can't find snapshot")
    return fitting[0].id


def _fits(snapshot: SnapshotInfo, given: dict[str, str]) -> bool:
    return (
        given.get("snapshot.id", snapshot.id) == snapshot.id
        and given.get("snapshot.name", snapshot.name) == snapshot.name
    )
