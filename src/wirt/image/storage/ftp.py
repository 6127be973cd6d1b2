"""A file on an FTP server, read from any place (RFC 959, REST of RFC 3659; TLS: RFC 4217).

``ftps://`` speaks TLS from the first byte where the server expects that (port 990), else
asks for it by ``AUTH TLS``. A transfer goes on as long as who reads does not jump.
"""

from __future__ import annotations

import ftplib
import select
import socket
import ssl
from urllib.parse import unquote

from wirt.errors import ImageAccessDenied, ImageError, ImageIoError, UnsupportedImage, UsageError
from wirt.image.storage.read_ahead import ReadAhead
from wirt.image.storage.retries import PAUSE, Passing, untrusted, with_retries
from wirt.image.storage.url import Url, parse_url

_PORTS = {"ftp": 21, "ftps": 0}
_IMPLICIT_PORT = 990
_SECONDS = 30.0
_GREETING_SECONDS = 2.0
_PIECE = 1 << 20


class FtpStorage(ReadAhead):
    """One file. ``tls`` replaces the host's certificates, ``pause`` is that of ``with_retries``.

    Raises ImageError, UsageError for an address that is none.
    """

    def __init__(
        self, name: str, *, tls: ssl.SSLContext | None = None, pause: float = PAUSE
    ) -> None:
        self._url = parse_url(name, _PORTS)
        self._path = unquote(self._url.path).removeprefix("/")
        if not self._path or not self._path.isprintable():
            raise UsageError("the address names no file: ftp://HOST/PATH")
        self._tls = tls
        self._pause = pause
        self._session: ftplib.FTP | None = None
        self._data: socket.socket | None = None
        self._position = 0
        super().__init__(self._url.shown, 0)
        try:
            self._state = self._tried_state()
        except BaseException:
            self.close()
            raise
        self._length = self._state[0]

    def _tried_state(self) -> tuple[int, str]:
        return with_retries(self._ask_state, name=self.name, pause=self._pause)

    def fetch(self, offset: int, length: int) -> bytes:
        return with_retries(lambda: self._ask(offset, length), name=self.name, pause=self._pause)

    def close(self) -> None:
        self._stop_transfer()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ask_state(self) -> tuple[int, str]:
        """Return length and date of change, as far as the server tells them."""
        try:
            session = self._connected()
            size = session.size(self._path)
        except (ImageError, Passing):
            self.close()
            raise
        except (OSError, EOFError, ftplib.Error) as error:
            self.close()
            raise self._explained(error) from error
        if size is None or not 0 <= size < 1 << 63:
            raise UnsupportedImage("the server does not tell how long the file is", path=self.name)
        return size, self._date(session)

    def _date(self, session: ftplib.FTP) -> str:
        try:
            return session.voidcmd(f"MDTM {self._path}")
        except ftplib.error_perm:
            return ""
        except (OSError, EOFError, ftplib.Error) as error:
            self.close()
            raise self._explained(error) from error

    def _ask(self, offset: int, length: int) -> bytes:
        try:
            if self._data is None or self._position != offset:
                self._begin(offset)
            return self._received(length)
        except (ImageError, Passing):
            self.close()
            raise
        except (OSError, EOFError, ftplib.Error) as error:
            self.close()
            raise self._explained(error) from error

    def _begin(self, offset: int) -> None:
        if self._data is not None:
            # An aborted transfer leaves answers behind: a new session is simpler and certain.
            self.close()
        if self._session is None and self._ask_state() != self._state:
            raise ImageIoError(
                "the file changed on the server while it was read",
                path=self.name,
                hint="open it again",
            )
        try:
            self._data = self._connected().transfercmd(f"RETR {self._path}", rest=offset)
        except ftplib.error_perm as error:
            if offset and str(error)[:3] in {"500", "501", "502", "504"}:
                raise UnsupportedImage(
                    "this server cannot send parts of a file",
                    path=self.name,
                    hint="download the file first, then open it",
                ) from error
            raise
        self._data.settimeout(_SECONDS)
        self._position = offset

    def _received(self, length: int) -> bytes:
        parts = []
        left = length
        while left and self._data is not None:
            data = self._data.recv(min(left, _PIECE))
            if not data:
                raise Passing("the transfer ended early")
            parts.append(data)
            left -= len(data)
        self._position += length
        if self._position == self._length:
            self._finish()
        return b"".join(parts)

    def _finish(self) -> None:
        """The file is at its end: the session can be used again."""
        self._stop_transfer()
        if self._session is not None:
            self._session.voidresp()

    def _stop_transfer(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _connected(self) -> ftplib.FTP:
        if self._session is None:
            self._session = _log_in(self._url, self._tls)
        return self._session

    def _explained(self, error: Exception) -> ImageError | Passing:
        words = "".join(char if char.isprintable() else " " for char in str(error))[:200]
        if isinstance(error, ssl.SSLCertVerificationError):
            return untrusted(error, self.name)
        if isinstance(error, ftplib.error_perm):
            if words.startswith("530"):
                hint = "give user and password in the address: ftp://USER:PASSWORD@HOST/…"
                return ImageAccessDenied(f"the server refuses: {words}", path=self.name, hint=hint)
            return ImageIoError(f"the server refuses: {words}", path=self.name)
        return Passing(words or type(error).__name__)


class _Session(ftplib.FTP_TLS):
    """FTP over TLS whose data connections go on with the control connection's TLS session.

    Servers ask for that, because it proves that both ends are the same (vsftpd:
    ``require_ssl_reuse``).
    """

    def ntransfercmd(
        self, cmd: str, rest: int | str | None = None
    ) -> tuple[socket.socket, int | None]:
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321 - under TLS below
        control = self.sock
        if not isinstance(control, ssl.SSLSocket):
            return data, size
        return (
            self.context.wrap_socket(data, server_hostname=self.host, session=control.session),
            size,
        )


def _log_in(url: Url, tls: ssl.SSLContext | None) -> ftplib.FTP:
    session = _greeted(url, tls) if url.scheme == "ftps" else ftplib.FTP(timeout=_SECONDS)  # noqa: S321 - what the user named
    try:
        if url.scheme == "ftp":
            session.connect(url.host, url.port)
        session.login(url.user or "anonymous", url.password or "wirt@")
        if isinstance(session, _Session):
            session.prot_p()
        session.voidcmd("TYPE I")
    except BaseException:
        session.close()
        raise
    return session


def _greeted(url: Url, tls: ssl.SSLContext | None) -> _Session:
    """Return a session under TLS: from the start, or asked for after a plain greeting."""
    session = _Session(timeout=_SECONDS, context=tls or ssl.create_default_context())
    port = url.port or _IMPLICIT_PORT
    plain = socket.create_connection((url.host, port), _SECONDS)
    try:
        session.host, session.af = url.host, plain.family
        speaks = port != _IMPLICIT_PORT and select.select([plain], [], [], _GREETING_SECONDS)[0]
        session.sock = (
            plain if speaks else session.context.wrap_socket(plain, server_hostname=url.host)
        )
        session.file = session.sock.makefile("r", encoding=session.encoding)
        session.welcome = session.getresp()
        if speaks:
            session.auth()
    except BaseException:
        session.close()
        plain.close()
        raise
    return session
