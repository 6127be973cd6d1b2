"""A file on a web server, read by ranges (RFC 9110, section 14).

A server that cannot do ranges would send the whole file for every few bytes: it is refused.
That the file stays the same is checked with each answer, by its ETag, date and length.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import time
from email.message import Message
from http import HTTPStatus
from urllib.parse import urljoin

from wirt.errors import ImageAccessDenied, ImageError, ImageIoError, UnsupportedImage
from wirt.image.storage.read_ahead import ReadAhead
from wirt.image.storage.retries import PAUSE, Passing, untrusted, with_retries
from wirt.image.storage.url import Url, parse_url

_PORTS = {"http": 80, "https": 443}
_SECONDS = 30.0
_SLOWEST = 16 << 10
"""Bytes a second: a server that sends less is given up."""
_MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_PIECE = 1 << 20


class HttpStorage(ReadAhead):
    """One file; the connection is kept, and made anew where it breaks.

    ``tls`` replaces the host's certificates, ``pause`` is that of ``with_retries``. Raises
    ImageError, UsageError for an address that is none.
    """

    def __init__(
        self, name: str, *, tls: ssl.SSLContext | None = None, pause: float = PAUSE
    ) -> None:
        self._asked = parse_url(name, _PORTS)
        self._url = self._asked
        self._tls = tls
        self._pause = pause
        self._connection: http.client.HTTPConnection | None = None
        self._state: tuple[str, str, int] | None = None
        super().__init__(self._asked.shown, 0)
        try:
            self.fetch(0, 1)
        except BaseException:
            self.close()
            raise

    def fetch(self, offset: int, length: int) -> bytes:
        return with_retries(lambda: self._ask(offset, length), name=self.name, pause=self._pause)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, offset: int, length: int) -> bytes:
        try:
            response = self._response(f"bytes={offset}-{offset + length - 1}")
            data = self._content(response, offset, length)
        except (ImageError, Passing):
            self.close()
            raise
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise untrusted(error, self.name) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Passing(str(error) or type(error).__name__) from error
        if response.will_close:
            self.close()
        return data

    def _response(self, wanted: str) -> http.client.HTTPResponse:
        """Ask for a range, following redirects but never out of https."""
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._request(wanted)
            if response.status not in _REDIRECTS:
                return response
            self._url = self._target(response)
            self.close()
        raise ImageIoError("the server redirects without end", path=self.name)

    def _request(self, wanted: str) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connected(self._url)
        headers = {"Range": wanted, "User-Agent": "wirt", "Accept-Encoding": "identity"}
        if self._asked.user and self._url.host == self._asked.host:
            secret = f"{self._asked.user}:{self._asked.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        self._connection.request("GET", self._url.path, headers=headers)
        return self._connection.getresponse()

    def _connected(self, url: Url) -> http.client.HTTPConnection:
        if url.scheme == "https":
            tls = self._tls or ssl.create_default_context()
            return http.client.HTTPSConnection(url.host, url.port, timeout=_SECONDS, context=tls)
        return http.client.HTTPConnection(url.host, url.port, timeout=_SECONDS)

    def _target(self, response: http.client.HTTPResponse) -> Url:
        place = urljoin(f"{self._url.shown}", response.headers.get("Location", ""))
        target = parse_url(place, _PORTS)
        if self._url.scheme == "https" and target.scheme != "https":
            raise ImageAccessDenied("the server redirects out of https", path=self.name)
        return target

    def _content(self, response: http.client.HTTPResponse, offset: int, length: int) -> bytes:
        if not offset and _is_empty(response):
            self._check_state(response.headers, 0)
            return b""
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            raise self._refusal(response.status)
        start, total = _content_range(response.headers)
        if start != offset:
            raise ImageIoError("the server sent another part than was asked for", path=self.name)
        self._check_state(response.headers, total)
        return _read(response, length)

    def _check_state(self, headers: Message, total: int) -> None:
        state = (headers.get("ETag", ""), headers.get("Last-Modified", ""), total)
        if self._state is None:
            self._state, self._length = state, total
        elif state != self._state:
            raise ImageIoError(
                "the file changed on the server while it was read",
                path=self.name,
                hint="open it again",
            )

    def _refusal(self, status: int) -> ImageError | Passing:
        if status in _BUSY:
            return Passing(f"status {status}")
        if self._url != self._asked:
            # Where a redirect led may have expired: the next try asks the first address.
            self._url = self._asked
            return Passing(f"status {status} behind a redirect")
        if status == HTTPStatus.OK:
            return UnsupportedImage(
                "this server cannot send parts of a file",
                path=self.name,
                hint="download the file first, then open it",
            )
        if status in {401, 403}:
            return ImageAccessDenied(
                f"the server refuses this file (status {status})",
                path=self.name,
                hint="give user and password in the address: https://USER:PASSWORD@HOST/…",
            )
        if status in {404, 410}:
            return ImageIoError("there is no such file on the server", path=self.name)
        return ImageIoError(f"the server answered with status {status}", path=self.name)


def _content_range(headers: Message) -> tuple[int, int]:
    """Return start and total of ``Content-Range: bytes START-END/TOTAL``; -1 if it is odd."""
    text = headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", text)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _is_empty(response: http.client.HTTPResponse) -> bool:
    """True if there is no byte to ask for; servers say so in two ways."""
    if response.status == HTTPStatus.OK:
        return response.headers.get("Content-Length") == "0"
    return (
        response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        and response.headers.get("Content-Range", "").strip() == "bytes */0"
    )


def _read(response: http.client.HTTPResponse, length: int) -> bytes:
    """Return the body, which must have ``length`` bytes. Raises Passing for a slow server."""
    deadline = time.monotonic() + _SECONDS + length / _SLOWEST
    parts = []
    left = length
    while left:
        data = response.read1(min(left, _PIECE))
        if not data or time.monotonic() > deadline:
            raise Passing("the answer ended early" if not data else "the server is too slow")
        parts.append(data)
        left -= len(data)
    if response.read1(1):
        raise Passing("the answer is longer than it says")
    return b"".join(parts)
