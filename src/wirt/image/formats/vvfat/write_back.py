"""Bringing a guest's changes back into the directory: all of them at one moment, or none.

The whole directory is made anew beside the old one. Unchanged files are hard links to the
old ones, so that only changes are copied. Then the two directories change places in one
step (``renameat2`` with ``RENAME_EXCHANGE``), and the old one is removed. Killed before that
step, the old directory stands as it was and one whose name says what it is lies beside it;
killed after it, the new one does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat

import msgspec

from wirt.errors import CorruptImage, ImageError, UnsupportedImage
from wirt.image.exchange import exchange
from wirt.image.formats.vvfat.contents import Contents, Found
from wirt.image.formats.vvfat.image import VvfatImage
from wirt.image.formats.vvfat.tree import Node, Tree, scan
from wirt.image.replacement import sync_directory
from wirt.image.storage.file import image_error

_COPY = 1 << 20


class Changes(msgspec.Struct, frozen=True):
    """What the guest did, as paths relative to the directory."""

    added: tuple[str, ...]
    modified: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.removed)


def changes(image: VvfatImage) -> Changes:
    """Compare what the guest left with what it was shown. Raises CorruptImage."""
    return _compare(image, _found(image))


def apply_changes(image: VvfatImage) -> Changes:
    """Bring the changes into the directory and return them. Raises ImageError.

    Refused if somebody else changed the directory meanwhile. ``image`` shows the disk as
    before; open it anew to see the new files.
    """
    found = _found(image)
    made = _compare(image, found)
    if made:
        _refuse_other_changes(image)
        _exchange(image, found)
    return made


def _found(image: VvfatImage) -> list[Found]:
    found = list(Contents(image, image.layout.volume, image.layout.start).walk())
    hidden = {path.upper() for path in image.tree.left_out}
    for one in found:
        if one.path.upper() in hidden:
            raise CorruptImage(
                f"the guest made {one.path}, where the directory has something else",
                hint="move that away first",
            )
    return found


def _compare(image: VvfatImage, found: list[Found]) -> Changes:
    before = {node.path: node for node in image.tree.top.walk() if node.path}
    added, modified = [], []
    for one in found:
        node = before.pop(one.path, None)
        if node is None:
            added.append(one.path)
        elif node.is_directory != one.is_directory or not (
            one.is_directory or _is_same(image, one, node)
        ):
            modified.append(one.path)
    return Changes(tuple(sorted(added)), tuple(sorted(modified)), tuple(sorted(before)))


def _is_same(image: VvfatImage, found: Found, node: Node) -> bool:
    """True if the bytes of ``found`` are those of the host's file ``node``."""
    if found.size != node.size or found.first != node.first:
        return False
    if len(found.runs) > 1:
        return False
    return all(_holds(image, node, *run) for run in found.runs)


def _holds(image: VvfatImage, node: Node, offset: int, length: int) -> bool:
    """True if the disk at ``offset`` shows the file still; guests write the same bytes again."""
    for done in range(0, length, _COPY):
        step = min(_COPY, length - done)
        if image.was_written(offset + done, step):
            kept = image.read_file(node, done, step)
            if image.pread(offset + done, step) != kept:
                return False
    return True


def _refuse_other_changes(image: VvfatImage) -> None:
    directory = image.tree.directory
    now = scan(directory)
    if _files(now) != _files(image.tree) or now.left_out != image.tree.left_out:
        raise UnsupportedImage(
            "the directory was changed on the host while the guest had it",
            path=directory,
            hint="nothing was written; convert the disk to an image to keep the guest's files",
        )


def _files(tree: Tree) -> list[tuple[str, int, float]]:
    nodes = (node for node in tree.top.walk() if not node.is_directory)
    return [(node.path, node.size, node.modified) for node in nodes]


def _exchange(image: VvfatImage, found: list[Found]) -> None:
    directory = os.path.realpath(image.tree.directory)
    above, name = os.path.split(directory)
    fresh = os.path.join(above, f".{name}.wirt-{secrets.token_hex(4)}")
    try:
        os.mkdir(fresh, 0o700)
        try:
            _fill(image, directory, fresh, found)
            _swap(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # the old directory, or what was begun
        sync_directory(above)
    except OSError as error:
        raise image_error(error, directory) from error


def _fill(image: VvfatImage, directory: str, fresh: str, found: list[Found]) -> None:
    originals = {node.first: node for node in image.tree.top.walk() if not node.is_directory}
    empty = {node.path: node for node in image.tree.top.walk() if not node.size}
    for one in found:
        target = os.path.join(fresh, one.path)
        node = originals.get(one.first) if one.first else empty.get(one.path)
        if one.is_directory:
            os.mkdir(target)
        elif node is not None and not node.is_directory and _is_same(image, one, node):
            os.link(os.path.join(directory, node.path), target, follow_symlinks=False)
        else:
            _write(image, one, target, os.path.join(directory, one.path))
    for path in image.tree.left_out:
        _keep(os.path.join(directory, path), os.path.join(fresh, path))
    _dress_directories(directory, fresh, found)


def _write(image: VvfatImage, found: Found, target: str, old: str) -> None:
    with open(target, "xb") as file:
        for offset, length in found.runs:
            end = offset + length
            places = range(offset, end, _COPY)
            file.writelines(image.pread(start, min(_COPY, end - start)) for start in places)
        file.flush()
        _dress(old, target)
        os.utime(target, (found.modified, found.modified))
        os.fsync(file.fileno())


def _keep(old: str, new: str) -> None:
    """Take over what FAT cannot show, where its directory still exists."""
    if not os.path.isdir(os.path.dirname(new)):
        raise UnsupportedImage(
            "the guest removed a directory that holds more than it was shown", path=old
        )
    os.link(old, new, follow_symlinks=False)


def _dress_directories(directory: str, fresh: str, found: list[Found]) -> None:
    for one in reversed(found):
        if one.is_directory:
            path = os.path.join(fresh, one.path)
            _dress(os.path.join(directory, one.path), path)
            os.utime(path, (one.modified, one.modified))
            sync_directory(path)
    _dress(directory, fresh)
    sync_directory(fresh)


def _dress(old: str, new: str) -> None:
    """Give the new file owner and mode of the old one of that name, if there is one."""
    try:
        info = os.lstat(old)
    except FileNotFoundError:
        return
    if stat.S_IFMT(info.st_mode) != stat.S_IFMT(os.lstat(new).st_mode):
        return
    if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(new, info.st_uid, info.st_gid)
    os.chmod(new, stat.S_IMODE(info.st_mode))


def _swap(fresh: str, directory: str) -> None:
    try:
        exchange(fresh, directory)
    except OSError as error:
        raise _no_exchange(error.errno or 0, directory) from error


def _no_exchange(number: int, directory: str) -> ImageError:
    return UnsupportedImage(
        f"the directory cannot be exchanged in one step: {os.strerror(number)}",
        path=directory,
        hint="use a directory inside a file system (ext4, XFS, Btrfs, tmpfs), not its top",
    )
