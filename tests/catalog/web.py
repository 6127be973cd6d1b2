"""A web server on the loopback that misbehaves on demand."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator


class Site:
    """What the server serves and how; the tests change it while it runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []  # bytes of the body after which the n-th answer is cut
        self.claim: int | None = None  # a Content-Length that is not true
        self.endless = False
        self.no_length = False
        self.ignore_ranges = False
        self.lie_about_range = False
        self.etag = '"one"'
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []  # path, Range header
        self.address = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range", "")
        site.requests.append((self.path, wanted))
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            self.end_headers()
            return
        body = site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if wanted and not site.ignore_ranges and self.headers.get("If-Range") == site.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            told = start + 1 if site.lie_about_range else start
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {told}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", site.etag)
        self._send_body(body[start:])

    def _send_body(self, body: bytes) -> None:
        site = self.site
        if not (site.endless or site.no_length):
            self.send_header("Content-Length", str(site.claim or len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            if site.cut_after:
                self.wfile.write(body[: site.cut_after.pop(0)])
                return
            self.wfile.write(body)
            while site.endless:
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args: object) -> None:
        pass  # connections that the client drops are the point of these tests


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
