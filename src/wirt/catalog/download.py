"""Downloads over http(s) into a file, resumed where a cut left them, bounded in every way."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Protocol

import msgspec

from wirt.errors import HostError, NoSpace, NotFound, ProtocolError, UsageError
from wirt.store.atomic import host_error, write_file
from wirt.typed_json import decode
from wirt.units import GIB, MIB, format_size

Progress = Callable[[int, int | None], None]
"""Told the bytes received and the total, None while unknown."""

_CHUNK = MIB
_ATTEMPTS = 5
_TIMEOUT = 30.0
_MARGIN = 64 * MIB
_MAX_REDIRECTS = 5
MAX_DOWNLOAD = 256 * GIB
_MAX_TEXT = 4 * MIB


class _Partial(msgspec.Struct, frozen=True):
    """What the unfinished file is a part of: without it nothing can be resumed safely."""

    url: str
    validator: str = ""
    """ETag or Last-Modified, as the server gave it."""


class _Response(Protocol):
    status: int
    headers: Message

    def read(self, amount: int = ..., /) -> bytes: ...


class _Cut(Exception):
    """The connection ended early; ``download`` tries again from where it stopped."""


def download(
    url: str,
    target: Path,
    *,
    limit: int = MAX_DOWNLOAD,
    tls: ssl.SSLContext | None = None,
    progress: Progress = lambda _done, _total: None,
    pause: float = 1.0,
) -> None:
    """Fetch ``url`` into ``target``; a part left there by an earlier call is continued.

    ``limit`` bounds the bytes received. ``pause`` seconds pass before a second try after a
    cut, more before each further one. Raises NotFound, HostError (cannot connect), NoSpace,
    ProtocolError (the server breaks its promise, or the body exceeds ``limit``); a part
    worth continuing then stays in ``target``.
    """
    _check_scheme(url)
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(min(pause * attempt, 10 * pause))
        before = _size(target)
        try:
            return _fetch(url, target, limit=limit, tls=tls, progress=progress)
        except _Cut as cut:
            problem = str(cut)
            if not _size(target) > before and attempt >= 2:
                break
    raise HostError(
        f"the download of {url} was cut off: {problem}",
        hint="run the same command again: it continues where it stopped",
    )


def fetch_text(url: str, *, tls: ssl.SSLContext | None = None) -> str:
    """Return a small text file, for example SHA256SUMS. Raises like ``download``."""
    _check_scheme(url)
    with _open(url, {}, tls) as response:
        data = _read(response, _MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise ProtocolError(f"{url} is too long for a list of checksums")
    return data.decode("utf-8", errors="replace")


def discard(target: Path) -> None:
    """Remove a part and what is known about it."""
    target.unlink(missing_ok=True)
    _note(target).unlink(missing_ok=True)


def _fetch(
    url: str, target: Path, *, limit: int, tls: ssl.SSLContext | None, progress: Progress
) -> None:
    start, headers = _resume_point(url, target)
    try:
        with _open(url, headers, tls) as response:
            start = _agreed_start(response, start, url)
            total = _total(response, start, url)
            _check_size(total, start, limit, target, url)
            _remember(url, target, response)
            with target.open("r+b" if start else "wb") as file:
                file.truncate(start)
                file.seek(start)
                done = _copy(response, file, start, limit, url, lambda n: progress(n, total))
    except OSError as error:
        raise host_error(error, os.fspath(target)) from error
    if total is not None and done != total:
        raise _Cut(f"{done} of {total} bytes arrived")
    _note(target).unlink(missing_ok=True)


def _resume_point(url: str, target: Path) -> tuple[int, dict[str, str]]:
    """Return how many bytes are there already, and the headers that ask for the others."""
    try:
        part = decode(_note(target).read_bytes(), _Partial)
    except (OSError, msgspec.MsgspecError):
        return 0, {}
    start = _size(target)
    if not start or part.url != url or not part.validator:
        return 0, {}
    return start, {"Range": f"bytes={start}-", "If-Range": part.validator}


def _agreed_start(response: _Response, start: int, url: str) -> int:
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and start:
        if _content_range(response)[0] != start:
            raise ProtocolError(f"{url}: the server sends another part than was asked for")
        return start
    if response.status != http.HTTPStatus.OK:
        raise ProtocolError(f"{url}: the server answered with status {response.status}")
    return 0


def _content_range(response: _Response) -> tuple[int, int | None]:
    """Return start and total of ``Content-Range: bytes START-END/TOTAL``; (-1, None) if odd."""
    import re

    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", header.strip())
    if not match:
        return -1, None
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def _total(response: _Response, start: int, url: str) -> int | None:
    if start:
        return _content_range(response)[1]
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not length.isdigit() or len(length) > 18:
        raise ProtocolError(f"{url}: the server names an impossible length")
    return int(length)


def _check_size(total: int | None, start: int, limit: int, target: Path, url: str) -> None:
    if total is None:
        return
    if total > limit:
        raise ProtocolError(f"{url} has {format_size(total)}, more than {format_size(limit)}")
    free = free_space(target.parent)
    if total - start > free - _MARGIN:
        raise NoSpace(
            f"{url} needs {format_size(total - start)} in {target.parent}, "
            f"and {format_size(free)} are free",
            hint="free space, or point WIRT_HOME to a larger file system",
        )


def free_space(directory: Path) -> int:
    """Return the bytes that may still be written in ``directory``."""
    info = os.statvfs(directory)
    return info.f_bavail * info.f_frsize


def _remember(url: str, target: Path, response: _Response) -> None:
    """Note what could be resumed; weak ETags do not promise equal bytes."""
    tag = response.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    note = _Partial(url=url, validator=validator[:1000])
    write_file(os.fspath(_note(target)), msgspec.json.encode(note))


def _copy(
    response: _Response,
    file: IO[bytes],
    start: int,
    limit: int,
    url: str,
    progress: Callable[[int], None],
) -> int:
    done = start
    while True:
        try:
            data = _read(response, _CHUNK)
        except _Cut:
            file.flush()
            raise
        if not data:
            return done
        done += len(data)
        if done > limit:
            raise ProtocolError(f"{url} sends more than {format_size(limit)}")
        _write(file, data)
        progress(done)


def _write(file: IO[bytes], data: bytes) -> None:
    if free_space(Path(file.name).parent) < len(data) + _MARGIN:
        raise NoSpace(f"{Path(file.name).parent} is full", hint="free space, then try again")
    file.write(data)


def _read(response: _Response, amount: int) -> bytes:
    try:
        return response.read(amount)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _open(url: str, headers: dict[str, str], tls: ssl.SSLContext | None) -> Iterator[_Response]:
    request = urllib.request.Request(url, headers={"User-Agent": "wirt", **headers})  # noqa: S310 - http(s) only, see _check_scheme
    opener = urllib.request.build_opener(
        _Redirects(), urllib.request.HTTPSHandler(context=tls or ssl.create_default_context())
    )
    try:
        response = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error.code) from error
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from error
    except http.client.HTTPException as error:
        raise ProtocolError(f"{url}: not an HTTP answer: {type(error).__name__}") from error
    except OSError as error:
        raise _Cut(str(error)) from error
    with response:
        yield response


def _refusal(url: str, status: int) -> NotFound | HostError | ProtocolError:
    if status in {404, 410}:
        return NotFound(f"{url} does not exist", hint="check the address in a browser")
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ProtocolError(f"{url} changed on the server", hint="remove the part: wirt gc")
    if 300 <= status < 400:
        return ProtocolError(f"{url}: redirected too often, or to a place not allowed")
    return HostError(f"{url}: the server refused with status {status}")


def _unreachable(url: str, reason: object) -> HostError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return HostError(
            f"{url}: the server's certificate is not trusted: {reason.verify_message}",
            hint="apt install ca-certificates, or set SSL_CERT_FILE to the CA's file",
        )
    words = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return HostError(f"{url} cannot be reached: {words}", hint="check the address and the network")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects, never out of https."""

    max_redirections = _MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://") and not (
            newurl.startswith("http://") and req.type == "http"
        ):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # the stub wants HTTPMessage, a subclass that adds nothing


def _check_scheme(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url[:80]!r} is not an http(s) address")


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
