"""Copying files into and out of a guest, as a tar stream through ``execute``.

The stream that comes out is the guest's to write, so its names are hostile: nothing is
unpacked outside the directory that was asked for, and no device or link is followed.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable
from typing import BinaryIO

from wirt.errors import GuestError, HostError, NotFound
from wirt.store.atomic import host_error
from wirt.vm.context import Context
from wirt.vm.execute import Order, execute


def copy_in(context: Context, name: str, source: str, target: str) -> None:
    """Copy a file or directory of the host to ``target`` in the guest.

    Like cp: into ``target`` if that is a directory, else to that name. Raises NotFound,
    GuestError, HostError.
    """
    if not os.path.lexists(source):
        raise NotFound(f"there is no {source} on this host")
    base = os.path.basename(os.path.abspath(source))
    read_fd, write_fd = os.pipe()
    failure: list[BaseException] = []
    packer = threading.Thread(target=_pack, args=(source, base, write_fd, failure), daemon=True)
    packer.start()
    try:
        _unpack_in_guest(context, name, base, target, read_fd)
    finally:
        os.close(read_fd)
        packer.join()
    if failure:
        raise HostError(f"{source} could not be read: {failure[0]}") from failure[0]


def _pack(source: str, base: str, fd: int, failure: list[BaseException]) -> None:
    try:
        with (
            open(fd, "wb") as pipe,
            tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            tar.add(source, arcname=base, filter=_as_root)
    except BrokenPipeError:
        return  # the guest's tar ended first; its own words are shown
    except (OSError, tarfile.TarError) as error:
        failure.append(error)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


_UNPACK = """\
set -e
t=$1 b=$2
if [ -d "$t" ]; then
    exec tar -x -f - -C "$t"
fi
case $t in */) echo "there is no directory $t" >&2; exit 1;; esac
d=$(mktemp -d "$(dirname -- "$t")/.wirt-XXXXXX")
trap 'rm -rf "$d"' EXIT
tar -x -f - -C "$d"
mv -f -T -- "$d/$b" "$t"
"""


def _unpack_in_guest(context: Context, name: str, base: str, target: str, fd: int) -> None:
    errors = io.BytesIO()
    code = execute(
        context,
        name,
        Order(["sh", "-c", _UNPACK, "sh", target, base], stdin=fd, stderr=_into(errors)),
    )
    if code:
        raise _guest_error(target, errors, code)


def copy_out(context: Context, name: str, source: str, target: str) -> None:
    """Copy a file or directory of the guest to ``target`` on the host.

    Raises GuestError, HostError.
    """
    source = source.rstrip("/") or "/"
    directory, base = os.path.split(source)
    into = target if os.path.isdir(target) else os.path.dirname(os.path.abspath(target))
    final = os.path.join(target, base) if os.path.isdir(target) else target
    if not os.path.isdir(into):
        raise NotFound(f"there is no directory {into} on this host")
    try:
        with tempfile.TemporaryDirectory(prefix=".wirt-", dir=into) as scratch:
            _receive(context, name, directory or "/", base or ".", scratch)
            _put_in_place(os.path.join(scratch, base or "."), final)
    except OSError as error:
        raise host_error(error, final) from error


def _put_in_place(source: str, final: str) -> None:
    if os.path.isdir(source) and os.path.isdir(final):
        shutil.copytree(source, final, dirs_exist_ok=True, symlinks=True)
    else:
        os.rename(source, final)


def _receive(context: Context, name: str, directory: str, base: str, scratch: str) -> None:
    read_fd, write_fd = os.pipe()
    failure: list[BaseException] = []
    reader = threading.Thread(target=_unpack_stream, args=(read_fd, scratch, failure), daemon=True)
    reader.start()
    errors = io.BytesIO()
    try:
        with open(write_fd, "wb") as pipe:
            code = execute(
                context,
                name,
                Order(
                    ["tar", "-c", "-f", "-", "-C", directory, "--", base],
                    stdout=_into_pipe(pipe),
                    stderr=_into(errors),
                ),
            )
    finally:
        reader.join()
    if failure:
        raise GuestError(f"{name} sent no good archive: {failure[0]}") from failure[0]
    if code:
        raise _guest_error(f"{directory}/{base}", errors, code)


def _into(buffer: io.BytesIO) -> Callable[[bytes], None]:
    def sink(data: bytes) -> None:
        if buffer.tell() < 1 << 16:
            buffer.write(data)

    return sink


def _into_pipe(pipe: BinaryIO) -> Callable[[bytes], None]:
    def sink(data: bytes) -> None:
        try:
            pipe.write(data)
            pipe.flush()
        except BrokenPipeError:
            return  # the reader refused the archive and says why

    return sink


def _unpack_stream(fd: int, scratch: str, failure: list[BaseException]) -> None:
    try:
        with open(fd, "rb") as pipe, tarfile.open(fileobj=pipe, mode="r|") as tar:
            for member in tar:
                _unpack_member(tar, member, scratch)
    except (tarfile.TarError, OSError, GuestError, ValueError) as error:
        failure.append(error)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, scratch: str) -> None:
    path = _inside(member.name, scratch)
    mode = stat.S_IMODE(member.mode) & 0o777
    if member.isdir():
        os.makedirs(path, mode | 0o700, exist_ok=True)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.isfile():
        _write_member(tar, member, path, mode)
    elif member.islnk():
        os.link(_inside(member.linkname, scratch), path, follow_symlinks=False)
    # Devices, sockets and pipes of a guest mean nothing on the host.


def _inside(name: str, scratch: str) -> str:
    """Return the path of a member; refuse one that would leave ``scratch``."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts or not parts:
        if not parts:
            return scratch
        raise GuestError(f"the guest sent a hostile name: {name!r}")
    parent = scratch
    for part in parts[:-1]:
        parent = os.path.join(parent, part)
        if os.path.islink(parent):
            raise GuestError(f"the guest sent a name through a link: {name!r}")
        os.makedirs(parent, 0o700, exist_ok=True)
    return os.path.join(parent, parts[-1])


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, mode: int) -> None:
    source = tar.extractfile(member)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:
        if source is not None:
            shutil.copyfileobj(source, file, 1 << 20)
    os.utime(path, (member.mtime, member.mtime))


def _guest_error(what: str, errors: io.BytesIO, code: int) -> GuestError:
    words = errors.getvalue().decode(errors="replace").strip().splitlines()
    said = words[0] if words else f"tar ended with {code}"
    return GuestError(f"{what} could not be copied: {said}")
