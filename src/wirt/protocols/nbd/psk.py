"""Shared keys in a TLS context of Python.

Python can set them from 3.13 on. Before, OpenSSL is asked itself: in CPython 3.11 and 3.12,
whose layout no longer changes, the pointer to OpenSSL's own context is the first field of an
SSLContext (``PySSLContext`` in ``Modules/_ssl.h``). What is found there is proved by what it says
of itself before anything is set.
"""

from __future__ import annotations

import ctypes
import ssl
import sys
from collections.abc import Callable, Mapping
from typing import Any

from wirt.errors import MissingDependency

_CIPHERS = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384"
"""Forward secret, and known to GnuTLS, which QEMU and libnbd use."""
_CLIENT = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint,
    ctypes.c_void_p, ctypes.c_uint,
)  # fmt: skip
_SERVER = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint
)


def server_context(keys: Mapping[str, bytes]) -> ssl.SSLContext:
    """Return a context that lets in whoever knows one of the keys."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)

    def key_of(identity: str | None) -> bytes:
        return keys.get(identity or "", b"")

    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(key_of)
    else:
        _set(context, "SSL_CTX_set_psk_server_callback", _server_callback(key_of))
    return context


def client_context(user: str, key: bytes) -> ssl.SSLContext:
    """Return a context that proves to be ``user``, and wants the server to know the key."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _hint: (user, key))
    else:
        _set(context, "SSL_CTX_set_psk_client_callback", _client_callback(user.encode(), key))
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the key proves both sides
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    return context


def _server_callback(key_of: Callable[[str | None], bytes]) -> Any:
    def call(_ssl: int, identity: bytes | None, place: int, room: int) -> int:
        key = key_of((identity or b"").decode("utf-8", "replace"))
        return _put(key, place, room)

    return _SERVER(call)


def _client_callback(identity: bytes, key: bytes) -> Any:
    def call(
        _ssl: int, _hint: bytes | None, name: int, name_room: int, place: int, room: int
    ) -> int:
        if not _put(identity + b"\0", name, name_room):
            return 0
        return _put(key, place, room)

    return _CLIENT(call)


def _put(data: bytes, place: int, room: int) -> int:
    """Copy to OpenSSL's buffer; 0 means that there is no key."""
    if not 0 < len(data) <= room:
        return 0
    ctypes.memmove(place, data, len(data))
    return len(data)


def _set(context: ssl.SSLContext, name: str, callback: Any) -> None:
    library = _openssl()
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    library.SSL_CTX_get_options.restype = ctypes.c_uint64
    library.SSL_CTX_get_options.argtypes = [ctypes.c_void_p]
    if library.SSL_CTX_get_options(pointer) != context.options & 0xFFFF_FFFF_FFFF_FFFF:
        raise _cannot()
    function = getattr(library, name)
    function.restype, function.argtypes = None, [ctypes.c_void_p, type(callback)]
    function(pointer, callback)
    context.wirt_keeps = callback  # type: ignore[attr-defined]  # as long as the context lives


def _openssl() -> ctypes.CDLL:
    """Return the very OpenSSL that Python's ssl uses. Raises MissingDependency."""
    import _ssl

    if sys.implementation.name != "cpython" or sys.version_info[:2] not in {(3, 11), (3, 12)}:
        raise _cannot()
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_CTX_set_psk_server_callback  # noqa: B018 - is it there?
    except (AttributeError, OSError):
        raise _cannot() from None  # built in: its symbols cannot be found
    return library


def _cannot() -> MissingDependency:
    return MissingDependency(
        "this Python cannot set shared keys for TLS",
        hint="use Python 3.13, or certificates (--tls-x509), or a unix socket through ssh -L",
    )
