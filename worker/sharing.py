"""Serves this machine's blobs to other workers of the LAN, each for a ticket of the control plane.

``GET /blobs/<sha256>`` with ``Authorization: Bearer <ticket>`` (espalier.tickets) and, if need be,
one Range; nothing else. A name is 64 hexadecimal digits or it is refused, so that no path leads
out of the cache.
"""

import logging
import re
import secrets
import socket
import threading
import time
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, BinaryIO

from espalier import tickets
from espalier.bandwidth import of_process
from espalier.errors import InvalidInput
from worker.cache import BlobCache

log = logging.getLogger("worker")

#: Connections at the same time; one more is closed at once, and its worker asks elsewhere.
MOST = 32
#: Seconds that a connection may be silent.
TIMEOUT = 30.0
#: Bytes handed to the system at once.
_PIECE = 4 << 20

_PATH = re.compile(r"/blobs/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


class Sharing:
    """The server of one worker process. ``key`` makes its tickets; the control plane is told it."""

    def __init__(self, cache: BlobCache, address: str) -> None:
        """Listen at ``address``, ``host:port`` as others reach it.

        Raises InvalidInput when it is none, OSError when it cannot be had.
        """
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
            raise InvalidInput(
                f"share_blobs is {address!r}: write host:port, as other workers reach this one."
            )
        if host.strip("[]") in ("0.0.0.0", "::"):  # noqa: S104  it is refused
            raise InvalidInput(
                f"share_blobs is {address!r}, which others cannot call: name this machine's own"
                " address on the LAN."
            )
        self.key = secrets.token_hex(32)
        self._server = _Server(host.strip("[]"), int(port), cache, self.key)
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="sharing", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.ident is not None:
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, host: str, port: int, cache: BlobCache, key: str) -> None:
        self.cache, self.key = cache, key
        self._room = threading.BoundedSemaphore(MOST)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = found[0]
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer would ask the network for its own name

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("sharing: %s went away", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        named = _PATH.fullmatch(self.path)
        if named is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        kind, _, ticket = (self.headers.get("Authorization") or "").partition(" ")
        if kind != "Bearer" or not tickets.is_good(self.server.key, named[1], ticket, time.time()):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        file = self.server.cache.open(named[1])
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with closing(file):
            self._answer(file)

    def _answer(self, file: BinaryIO) -> None:
        size = file.seek(0, 2)
        start, stop = 0, size
        asked = _RANGE.fullmatch(self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
            if start >= stop:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        limit = of_process().up
        while start < stop:
            count = min(_PIECE if limit.rate is None else limit.chunk, stop - start)
            limit.take(count)
            sent = self.connection.sendfile(file, start, count)
            if not sent:
                self.close_connection = True
                return
            start += sent

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def version_string(self) -> str:
        return "espalier"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        log.debug("sharing: " + format, *args)
