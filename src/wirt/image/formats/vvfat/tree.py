"""A directory of the host, looked at once: what becomes files of the FAT disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec

from wirt.errors import ImageError, OutOfBounds, UnsupportedImage, UsageError
from wirt.image.fat.directory import LARGEST_FILE, check_name
from wirt.image.storage.file import image_error

MOST_FILES = 200_000


class Node(msgspec.Struct):
    """A file or directory; ``path`` is relative to the top, whose own is empty."""

    path: str
    is_directory: bool
    size: int
    modified: float
    read_only: bool = False
    children: list[Node] = msgspec.field(default_factory=list)
    first: int = 0
    """First cluster; 0 for none."""
    count: int = 0
    """Number of clusters."""

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below, directories before what is in them."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))


class Tree(msgspec.Struct, frozen=True):
    """The top directory and the names that have no place on FAT."""

    directory: str
    top: Node
    left_out: tuple[str, ...]
    """Symbolic links, sockets and other things that FAT does not know."""


def scan(directory: str) -> Tree:
    """Look at ``directory`` and all below; links are not followed. Raises ImageError."""
    left_out: list[str] = []
    top = Node("", is_directory=True, size=0, modified=0)
    waiting = [top]
    found = 0
    while waiting:
        parent = waiting.pop()
        for node in _children(directory, parent, left_out):
            parent.children.append(node)
            found += 1
            if found > MOST_FILES:
                raise OutOfBounds(f"more than {MOST_FILES} files", path=directory)
        waiting.extend(node for node in parent.children if node.is_directory)
        _refuse_equal_names(directory, parent)
    return Tree(directory, top, tuple(sorted(left_out)))


def _children(directory: str, parent: Node, left_out: list[str]) -> Iterator[Node]:
    path = os.path.join(directory, parent.path)
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            node = _node(os.path.join(path, name), os.path.join(parent.path, name))
            if node is None:
                left_out.append(os.path.join(parent.path, name))
            else:
                yield node
    except OSError as error:
        raise image_error(error, path) from error


def _node(path: str, relative: str) -> Node | None:
    """Return None for what is neither a file nor a directory."""
    info = os.lstat(path)
    try:
        check_name(os.path.basename(path))
    except (UsageError, UnicodeEncodeError) as error:
        raise _cannot("the name cannot be on a FAT file system", path) from error
    if stat.S_ISDIR(info.st_mode):
        return Node(relative, is_directory=True, size=0, modified=info.st_mtime)
    if not stat.S_ISREG(info.st_mode):
        return None
    if info.st_size > LARGEST_FILE:
        raise _cannot("a file on FAT has less than 4 GiB", path)
    protected = not info.st_mode & stat.S_IWUSR
    return Node(relative, False, info.st_size, info.st_mtime, protected)


def _refuse_equal_names(directory: str, parent: Node) -> None:
    """On FAT ``a`` and ``A`` are one name."""
    seen: dict[str, str] = {}
    for node in parent.children:
        other = seen.setdefault(node.name.upper(), node.name)
        if other != node.name:
            path = os.path.join(directory, parent.path)
            raise _cannot(f"{other!r} and {node.name!r} are one name on FAT", path)


def _cannot(message: str, path: str) -> ImageError:
    return UnsupportedImage(message, path=path, hint="rename it, or leave it out of the directory")
