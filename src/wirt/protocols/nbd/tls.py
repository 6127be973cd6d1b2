"""TLS for NBD: certificates laid out as QEMU and libnbd lay them out, or shared keys.

::

    DIRECTORY/ca-cert.pem       who signs; both sides
    DIRECTORY/server-cert.pem   server-key.pem
    DIRECTORY/client-cert.pem   client-key.pem    optional for a client

    FILE                        lines USER:HEX-KEY, as psktool writes them
"""

from __future__ import annotations

import binascii
import os
import ssl
from collections.abc import Mapping

from wirt.errors import HostError
from wirt.protocols.nbd import psk
from wirt.protocols.nbd.line import Tls

_MAX_KEY_FILE = 1 << 20


def server_x509(directory: str) -> Tls:
    """Return TLS for a server that lets in clients whose certificate the same CA signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, directory, "server")
    context.verify_mode = ssl.CERT_REQUIRED
    return Tls(context, server_side=True)


def client_x509(directory: str, hostname: str) -> Tls:
    """Return TLS for a client that wants ``hostname`` in the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, directory, "client", optional=True)
    return Tls(context, hostname=hostname)


def _load(context: ssl.SSLContext, directory: str, side: str, *, optional: bool = False) -> None:
    certificate = os.path.join(directory, f"{side}-cert.pem")
    try:
        context.load_verify_locations(os.path.join(directory, "ca-cert.pem"))
        if not optional or os.path.exists(certificate):
            context.load_cert_chain(certificate, os.path.join(directory, f"{side}-key.pem"))
    except (OSError, ssl.SSLError) as error:
        raise HostError(
            f"the certificates in {directory} cannot be used: {error.strerror or error}",
            hint=f"it needs ca-cert.pem, {side}-cert.pem and {side}-key.pem",
        ) from None


def server_psk(path: str) -> Tls:
    """Return TLS for a server that lets in who knows a key in the file."""
    return Tls(psk.server_context(read_keys(path)), server_side=True)


def client_psk(path: str, user: str) -> Tls:
    """Return TLS for a client that is ``user``, with that user's key of the file."""
    key = read_keys(path).get(user)
    if key is None:
        raise HostError(f"{path} has no key of {user!r}", hint="name the user: nbds://USER@HOST")
    return Tls(psk.client_context(user, key))


def read_keys(path: str) -> Mapping[str, bytes]:
    """Return the keys by their users. Raises HostError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}", hint="make it: psktool -u USER -p FILE"
        ) from error
    keys = {}
    for line in data.splitlines():
        user, colon, key = line.strip().partition(b":")
        if not colon or line.startswith(b"#"):
            continue
        try:
            keys[user.decode()] = binascii.unhexlify(key)
        except (ValueError, UnicodeDecodeError):
            raise HostError(f"{path} has a line that is not USER:HEX-KEY") from None
    return keys
