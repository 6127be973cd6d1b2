"""The catalog: guest images in one directory, made whole or not at all.

::

    ROOT/
    ├── ID/                 0711 one image; ID is the first 16 digits of its id
    │   ├── image.json      0444 the record, see wirt.catalog.image
    │   └── …               0444 disk, kernel, initrd
    ├── .part-KEY[.json]    an unfinished download; garbage after a week
    ├── .making-KEY         lock of whoever makes the image with that fingerprint
    ├── .new-XXXXXXXX/      an image being made; garbage once its ``lock`` is free
    └── .old-XXXXXXXX/      an image being removed; garbage at once

Nothing in ID/ changes after the rename that published it: overlays of machines stand on it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from wirt.catalog import child
from wirt.catalog.image import GuestImage, StoredImage
from wirt.catalog.namespace import enter_command
from wirt.errors import Busy, CorruptImage, HostError, NotFound
from wirt.store.atomic import host_error, sync_directory, write_file

RECORD = "image.json"
_LOCK = "lock"
_ID_DIGITS = 16
_PART_LIFE = 7 * 86400.0


class Draft:
    """A directory that becomes an image, or garbage."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: set[str] = set()

    def path(self, name: str) -> Path:
        """Return where to write the file ``name``, which will belong to the image."""
        self.files.add(name)
        return self.directory / name

    def scratch(self, name: str) -> Path:
        """Return a path that is removed before the image is published."""
        return self.directory / name


class Catalog:
    """The images under ``root``, which is made when something is put into it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(self) -> list[StoredImage]:
        """Return the readable images by name, the newest of a name first."""
        found = [image for path in self._directories() if (image := _read(path))]
        return sorted(found, key=lambda image: (image.record.name, -image.record.created))

    def find(self, name: str) -> StoredImage:
        """Return the newest image called ``name``, or the one whose id starts so.

        Raises NotFound with the nearest names.
        """
        images = self.images()
        wanted = name.lower()
        for image in images:
            if image.record.name == wanted:
                return image
        if len(wanted) >= 4:
            by_id = [image for image in images if image.record.id.startswith(wanted)]
            if len(by_id) == 1:
                return by_id[0]
        raise self._not_found(name, [image.record.name for image in images])

    def find_made(self, fingerprint: str, name: str) -> StoredImage | None:
        """Return the newest image with that fingerprint and name, if there is one."""
        wanted = (fingerprint, name)
        made = [
            image
            for image in self.images()
            if (image.record.fingerprint, image.record.name) == wanted
        ]
        return max(made, key=lambda image: image.record.created, default=None)

    def remove(self, name: str, *, in_use: Callable[[StoredImage], list[str]]) -> StoredImage:
        """Remove the image that ``find`` returns; nothing of it can be found afterwards.

        ``in_use`` returns the names of machines whose disks stand on the image: with any,
        Busy is raised and nothing happens.
        """
        image = self.find(name)
        users = in_use(image)
        if users:
            raise Busy(
                f"{image.record.name} is the base of {_listed(users)}",
                hint=f"remove them first: wirt rm {users[0]}",
            )
        doomed = self.root / f".old-{os.urandom(8).hex()}"
        try:
            image.directory.rename(doomed)
            sync_directory(os.fspath(self.root))
        except FileNotFoundError:
            raise self._not_found(name, []) from None
        except OSError as error:
            raise host_error(error, os.fspath(image.directory)) from error
        remove_tree(doomed)
        return image

    @contextmanager
    def making(self, fingerprint: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Let one process at a time make the image; ``waiting`` is called if it must queue."""
        self._make_root()
        path = self.root / f".making-{fingerprint[:_ID_DIGITS]}"
        fd = _queue(path, waiting)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """Yield a directory to make an image in; what is not published is removed."""
        self._make_root()
        directory, fd = self._new_directory()
        try:
            yield Draft(directory)
        finally:
            if directory.exists():
                remove_tree(directory)
            os.close(fd)

    def _new_directory(self) -> tuple[Path, int]:
        """Return a directory that no sweep takes for garbage, and its lock."""
        while True:
            directory = self.root / f".new-{os.urandom(8).hex()}"
            try:
                directory.mkdir(0o700)
                fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise host_error(error, os.fspath(directory)) from error
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _same_file(directory / _LOCK, fd):
                return directory, fd
            os.close(fd)  # swept before it was locked

    def publish(self, draft: Draft, record: GuestImage) -> StoredImage:
        """Turn ``draft`` into the image that ``record`` describes, durably.

        The allocated size is measured here. If an image with the same id exists already,
        that one is returned.
        """
        target = self.root / record.id[:_ID_DIGITS]
        try:
            allocated = _settle(draft)
            record = msgspec.structs.replace(record, allocated_size=allocated)
            write_file(os.fspath(draft.directory / RECORD), record.pack(), mode=0o444)
            (draft.directory / _LOCK).unlink()
            draft.directory.chmod(0o711)
            draft.directory.rename(target)
            sync_directory(os.fspath(self.root))
        except OSError as error:
            existing = _read(target)
            if existing and existing.record.id == record.id:
                return existing
            raise host_error(error, os.fspath(target)) from error
        return StoredImage(record, target)

    def sweep(self) -> list[str]:
        """Remove what killed commands left; return the names of what was removed."""
        removed = []
        for path in sorted(self.root.glob(".*")) if self.root.is_dir() else []:
            with _claimed(path) as is_garbage:
                if is_garbage:
                    remove_tree(path)
                    removed.append(path.name)
        return removed

    def _make_root(self) -> None:
        try:
            self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise host_error(error, os.fspath(self.root)) from error

    def _directories(self) -> list[Path]:
        try:
            return [path for path in self.root.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise host_error(error, os.fspath(self.root)) from error

    def _not_found(self, name: str, names: list[str]) -> NotFound:
        import difflib

        near = difflib.get_close_matches(name.lower(), sorted(set(names)), n=3, cutoff=0.5)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif names:
            hint = f"there are: {', '.join(sorted(set(names))[:8])}"
        else:
            hint = "make one: wirt build debian:12"
        return NotFound(f"there is no image {name[:80]!r}", hint=hint)


def _read(directory: Path) -> StoredImage | None:
    """Return the image in ``directory``, or None if it holds none that we can read."""
    path = directory / RECORD
    try:
        with path.open("rb") as file:
            data = file.read(1 << 20)
        return StoredImage(GuestImage.parse(data, path=os.fspath(path)), directory)
    except (OSError, CorruptImage):
        return None


def _settle(draft: Draft) -> int:
    """Bring the draft's files to the disk, read-only; return the bytes they occupy."""
    allocated = 0
    for entry in sorted(draft.directory.iterdir()):
        if entry.name not in draft.files and entry.name != _LOCK:
            remove_tree(entry)
            continue
        if entry.name == _LOCK:
            continue
        fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
            os.fchmod(fd, 0o444)
            allocated += os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)
    return allocated


def remove_tree(path: Path) -> None:
    """Remove ``path``; parts of a guest's tree belong to users of the build's namespace."""
    import shutil

    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except PermissionError:
        child.run(
            [
                *enter_command(),
                "rm",
                "--recursive",
                "--force",
                "--one-file-system",
                "--",
                os.fspath(path),
            ],
            what=f"removing {path}",
        )
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error


def _queue(path: Path, waiting: Callable[[], None]) -> int:
    """Return a descriptor that holds ``path``, however often its owner unlinked it before."""
    told = False
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise host_error(error, os.fspath(path)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                waiting()
            told = True
            fcntl.flock(fd, fcntl.LOCK_EX)
        if _same_file(path, fd):
            return fd
        os.close(fd)


def _same_file(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Yield whether ``path`` is garbage; then nobody else takes its lock during the block."""
    kind = path.name[1:].partition("-")[0]
    lock = {"new": path / _LOCK, "making": path}.get(kind)
    if lock is None:
        yield kind == "old" or (kind == "part" and _age(path, time.time()) > _PART_LIFE)
        return
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield _age(lock.parent, time.time()) > 60  # a draft that has none yet
        return
    except OSError:
        yield False
        return
    try:
        yield _take(fd)
    finally:
        os.close(fd)


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
