"""Give chunks to the other nodes of this run, and to nobody else."""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from .folder import Part

# A peer that says nothing for so long is gone, in seconds.
SILENCE_S = 60.0
# A request waits no longer than this for a chunk that is still on its way.
LONGEST_WAIT_S = 10.0
DIGEST_HEADER = "X-Splitrail-SHA256"


class ChunkServer(ThreadingHTTPServer):
    """Listens on the node's own address only, and answers only who knows the run's token.

    GET /MANIFEST/INDEX?wait=SECONDS gives a chunk (200), or says how far this node is (404):
    ``{"moved": BYTES}``, the bytes that came in since it began. served: bytes given.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: str, port: int, token: str, part: Part, moved: Callable[[], int]) -> None:
        """Raises OSError: the address is not this node's, or the port is taken."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.part, self.moved, self.served = part, moved, 0
        self.wanted = f"Bearer {token}".encode()
        self.arrived = threading.Condition()
        super().__init__((address, port), _Handler)

    def tell(self) -> None:
        """A chunk has arrived: let those who wait for one look again."""
        with self.arrived:
            self.arrived.notify_all()

    def count(self, given: int) -> None:
        """Note bytes that were given."""
        with self.arrived:
            self.served += given

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away in the middle of an answer is nobody's fault here."""


class _Handler(BaseHTTPRequestHandler):
    server: ChunkServer
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = SILENCE_S
    server_version, sys_version = "splitrail", ""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self.server.wanted):
            self._say(HTTPStatus.UNAUTHORIZED, {"error": "not of this run"})
            return
        part, parts = self.server.part, urlsplit(self.path)
        manifest, _, number = parts.path.lstrip("/").partition("/")
        if manifest != part.manifest.digest:
            self._say(HTTPStatus.CONFLICT, {"error": "another model, or another list of its files"})
            return
        if not number.isdecimal() or int(number) >= len(part.chunks):
            self._say(HTTPStatus.BAD_REQUEST, {"error": "no such chunk"})
            return
        wait = float((parse_qs(parts.query).get("wait") or ["0"])[0])
        if self._await(int(number), min(wait, LONGEST_WAIT_S)):
            self._give(int(number))
        else:
            self._say(HTTPStatus.NOT_FOUND, {"moved": self.server.moved()})

    def _await(self, index: int, wait: float) -> bool:
        until, part = time.monotonic() + wait, self.server.part
        with self.server.arrived:
            while index not in part.have and (left := until - time.monotonic()) > 0:
                self.server.arrived.wait(left)
        return index in part.have

    def _give(self, index: int) -> None:
        part = self.server.part
        chunk = part.chunks[index]
        try:
            digest = part.digest(index)
            try:
                content = part.path(index).open("rb")
            except FileNotFoundError:  # the model got its name just now
                content = part.path(index).open("rb")
        except OSError as error:
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
            return
        with content:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(chunk.length))
            self.send_header(DIGEST_HEADER, digest)
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(content, chunk.offset, chunk.length)
        self.server.count(chunk.length)

    def _say(self, status: HTTPStatus, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a chunk and peer would be thousands."""
