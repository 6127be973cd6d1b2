"""``kvm-img snapshot``."""

from __future__ import annotations

from collections.abc import Sequence

from wirt.cli.kvm_img.command import OPEN, SHARE, one_file, opening, read_words
from wirt.cli.kvm_img.description import snapshot_lines
from wirt.cli.kvm_img.failure import Failure, Misuse, failure_of
from wirt.cli.kvm_img.opening import Opened, open_named
from wirt.errors import NotFound, WirtError
from wirt.image.base import HasSnapshots

_ACTIONS = "lacd"
_NOT_SUPPORTED = 95


def run(words: Sequence[str]) -> int:
    parsed = read_words(words, "la:c:d:hqU", {**OPEN, **SHARE})
    actions = [pair for pair in parsed.options if pair[0] in _ACTIONS]
    if len(actions) > 1:
        raise Misuse("Cannot mix '-l', '-a', '-c', '-d'")
    action, wanted = actions[0] if actions else ("", "")
    name = one_file(parsed)
    how = opening(parsed, writable=action != "l")
    with open_named(name, None, how) as opened:
        _act(opened, action, wanted)
    return 0


def _act(opened: Opened, action: str, name: str) -> None:
    image = opened.image
    if action == "l":
        snapshots = list(image.snapshots()) if isinstance(image, HasSnapshots) else []
        if snapshots:
            print("\n".join(snapshot_lines(snapshots)))
    elif action == "c":
        if not isinstance(image, HasSnapshots):
            raise Failure(
                f"Could not create snapshot '{name}': -{_NOT_SUPPORTED} (Operation not supported)"
            )
        with _worded(f"Could not create snapshot '{name}': "):
            image.snapshot_create(name)
    elif action == "a":
        if not isinstance(image, HasSnapshots):
            raise Failure(
                f"Could not apply snapshot '{name}': Block driver does not support snapshots"
            )
        missing = "Failed to load snapshot: No such file or directory"
        with _worded(f"Could not apply snapshot '{name}': ", missing):
            image.snapshot_apply(name)
    elif action == "d":
        # By name only: other than for -a, an id is none.
        known = image.snapshots() if isinstance(image, HasSnapshots) else ()
        chosen = next((snapshot for snapshot in known if snapshot.name == name), None)
        if not isinstance(image, HasSnapshots) or chosen is None:
            raise Failure(f"Could not delete snapshot '{name}': snapshot not found")
        with _worded(f"Could not delete snapshot '{name}': ", "snapshot not found"):
            image.snapshot_delete(chosen.id)


class _worded:  # noqa: N801 - reads as a function
    """Give the engine's errors a prefix, and "not found" the words that are expected."""

    def __init__(self, prefix: str, not_found: str = "") -> None:
        self._prefix = prefix
        self._not_found = not_found

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NotFound) and self._not_found:
            raise Failure(self._prefix + self._not_found) from error
        if isinstance(error, WirtError):
            raise failure_of(error).prefixed(self._prefix) from error
