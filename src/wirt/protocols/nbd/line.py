"""A connected socket of either side: whole messages, TLS, and an end to every wait."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from typing import TypeVar

from wirt.errors import HostError, PeerClosed, ProtocolError, Timeout
from wirt.protocols.deadline import Deadline
from wirt.protocols.nbd.steps import Handshake, Receive, Send, StartTls

T = TypeVar("T")

_TIMEVAL = struct.Struct("ll")
_AGAIN = {errno.EAGAIN, errno.EWOULDBLOCK}
_TIMEOUTS = (TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CORK = socket.MSG_MORE


class Tls:
    """How to turn a connection into TLS; ``hostname`` is what the certificate must name."""

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, hostname: str | None = None
    ) -> None:
        self.context = context
        self.server_side = server_side
        self.hostname = hostname


class Line:
    """One connection. ``name`` appears in messages. Raises PeerClosed and Timeout.

    One thread may send while another receives, but for TLS: OpenSSL serves one at a time.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._socket = sock
        self.name = name
        self.is_tls = False
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def set_timeout(self, seconds: float) -> None:
        """Bound every later send and receive, each as a whole; 0 is no bound.

        Python's own timeouts would need another system call for each part of a message.
        """
        self._socket.settimeout(None)
        value = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000) + (0 < seconds < 1e-6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def receive(self, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        buffer = bytearray(length)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view``."""
        flags = 0 if self.is_tls else socket.MSG_WAITALL
        while view:
            try:
                done = self._socket.recv_into(view, 0, flags)
            except OSError as error:
                raise self._broken(error) from None
            if not done:
                raise PeerClosed(f"{self.name}: the peer closed the connection")
            view = view[done:]

    def receive_parts(self, first: memoryview, second: memoryview) -> None:
        """Fill two buffers, in one system call where that can be."""
        if self.is_tls:
            self.receive_into(first)
            self.receive_into(second)
            return
        try:
            done = self._socket.recvmsg_into([first, second], 0, socket.MSG_WAITALL)[0]
        except OSError as error:
            raise self._broken(error) from None
        if not done:
            raise PeerClosed(f"{self.name}: the peer closed the connection")
        self.receive_into(first[done:])
        self.receive_into(second[max(0, done - len(first)) :])

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send all parts as one message."""
        try:
            if self.is_tls:
                for part in parts:
                    self._socket.sendall(part)
            elif len(parts) == 1:
                self._socket.sendall(parts[0])
            else:
                self._send_parts(parts)
        except OSError as error:
            raise self._broken(error) from None

    def _send_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        done = self._socket.sendmsg(parts)
        for part in parts:
            if done < len(part):
                self._socket.sendall(memoryview(part)[done:])
                done = 0
            else:
                done -= len(part)

    def send_file(self, header: bytes, fd: int, offset: int, length: int) -> None:
        """Send ``header`` and bytes of a file, which do not pass through this process.

        What the file lacks behind its end is sent as zeros. Not for TLS.
        """
        try:
            self._socket.sendall(header, _CORK)
            while length:
                done = os.sendfile(self._socket.fileno(), fd, offset, length)
                if not done:
                    self._socket.sendall(bytes(length))
                    return
                offset += done
                length -= done
        except OSError as error:
            raise self._broken(error) from None

    def start_tls(self, tls: Tls) -> None:
        """Turn the connection into TLS. Raises ProtocolError."""
        try:
            # In two steps: whoever cuts the connection off must find the socket that is in use.
            secured = tls.context.wrap_socket(
                self._socket,
                server_side=tls.server_side,
                server_hostname=tls.hostname,
                do_handshake_on_connect=False,
            )
            self._socket = secured
            secured.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise ProtocolError(
                f"{self.name}: the certificate is not good: {error.verify_message}",
                hint="the name in the URI must be in it, and ca-cert.pem must have signed it",
            ) from None
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ProtocolError(f"{self.name}: TLS failed: {reason}") from None
        except OSError as error:
            raise self._broken(error) from None
        self.is_tls = True

    def run(self, handshake: Handshake[T], tls: Tls | None, deadline: Deadline) -> T:
        """Do what ``handshake`` asks, until ``deadline``; return what it agreed."""
        brought = b""
        # A peer that drips bytes would renew any timeout of a single receive.
        watch = threading.Timer(deadline.left(), self.shut_down)
        watch.daemon = True
        watch.start()
        try:
            self.set_timeout(max(deadline.left(), 0.001))
            while True:
                step = handshake.send(brought) if brought else next(handshake)
                brought = self._do(step, tls)
        except StopIteration as end:
            result: T = end.value
            return result
        except PeerClosed:
            if not deadline.left():
                raise Timeout(f"{self.name}: the peer did not come to an agreement") from None
            raise
        finally:
            watch.cancel()
            handshake.close()

    def _do(self, step: Send | Receive | StartTls, tls: Tls | None) -> bytes:
        if isinstance(step, Send):
            self.send(step.data)
        elif isinstance(step, Receive):
            return self.receive(step.length)
        elif tls is None:
            raise ProtocolError(f"{self.name}: TLS is not set up here")
        else:
            self.start_tls(tls)
        return b""

    def shut_down(self) -> None:
        """Let every thread that waits on this connection go on, with an error."""
        with contextlib.suppress(OSError):
            # Not the method of TLS, which would take the connection away under its users.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _broken(self, error: OSError) -> PeerClosed | Timeout:
        if error.errno in _AGAIN or isinstance(error, _TIMEOUTS):
            return Timeout(f"{self.name}: no answer in time")
        words = getattr(error, "reason", None) or error.strerror or error
        return PeerClosed(f"{self.name}: the connection broke: {words}")


def connect_tcp(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of ``host`` that answers. Raises PeerClosed, Timeout."""
    where = f"{host}:{port}"
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostError(f"{host}: {getattr(error, 'strerror', None) or error}") from None
    refused = PeerClosed(f"{where}: it has no address")
    for family, _, _, _, address in addresses:
        try:
            return _connect_tcp(family, address, where, deadline)
        except PeerClosed as error:
            refused = error
    raise refused


def _connect_tcp(family: int, address: object, where: str, deadline: Deadline) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(max(deadline.left(), 0.001))
        sock.connect(address)  # type: ignore[arg-type]  # each family has its own
    except TimeoutError:
        sock.close()
        raise Timeout(f"{where}: no answer") from None
    except OSError as error:
        sock.close()
        raise PeerClosed(
            f"cannot connect to {where}: {error.strerror or error}", hint="is the server up?"
        ) from None
    return sock
