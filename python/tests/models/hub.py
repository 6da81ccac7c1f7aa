"""A hub on this machine: the part of the Hugging Face HTTP interface that is used, and a plain folder.

    python3 hub.py FOLDER --repository OWNER/NAME --revision COMMIT [--address A] [--port P] [--token-file F]
                   [--rate MB_PER_S]

It lists in pages of two files, hands out signed addresses of a storage on another host name, and that storage
refuses who brings a token, as the real one does. ``/files/PATH`` gives the same files with no ado.
``/counters`` says how many bytes of files went out. Prints its port. Standard library only: it runs on nodes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 2
BLOCK = 64 << 10
LARGE = 1000  # bytes from which a file is in LFS here
SIGNATURE = "signed-for-an-hour"


class Hub(ThreadingHTTPServer):
    """Serves one repository at one commit. rate: bytes/s of all answers together; 0 is as fast as it goes."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        folder: Path,
        *,
        repository: str = "owner/tiny",
        revision: str = 40 * "a",
        token: str = "",
        rate: float = 0,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.folder, self.repository, self.revision = folder, repository, revision
        self.token, self.rate = token, rate
        self.bytes, self.asked = 0, 0
        self.down = False
        self._lock, self._free_at = threading.Lock(), 0.0
        super().__init__((address, port), Handler)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def spend(self, size: int) -> None:
        """Count bytes that are about to go out, and sleep as the rate wants it."""
        with self._lock:
            self.bytes += size
            if not self.rate:
                return
            self._free_at = max(self._free_at, time.monotonic()) + size / self.rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """See the head of this file."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, parts = self.server, urlsplit(self.path)
        path = unquote(parts.path)
        hub.asked += 1
        if path == "/counters":
            self._json({"bytes": hub.bytes, "asked": hub.asked})
        elif hub.down:
            self._fail(503)
        elif path.startswith("/files/"):
            self._file(path.removeprefix("/files/"))
        elif path.startswith("/storage/"):
            if "Authorization" in self.headers or parse_qs(parts.query).get("signature") != [SIGNATURE]:
                self._fail(400)
            else:
                self._file(path.removeprefix("/storage/"))
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._fail(401)
        elif path == f"/api/models/{hub.repository}/tree/{hub.revision}":
            self._tree(int((parse_qs(parts.query).get("cursor") or ["0"])[0]))
        elif path.startswith(prefix := f"/{hub.repository}/resolve/{hub.revision}/"):
            self._resolve(path.removeprefix(prefix))
        else:
            self._fail(404)

    def _tree(self, cursor: int) -> None:
        hub, entries = self.server, []
        paths = sorted(each for each in hub.folder.rglob("*") if each.is_file())
        for path in paths[cursor : cursor + PAGE]:
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            entry = {
                "type": "file",
                "path": path.relative_to(hub.folder).as_posix(),
                "size": len(content),
                "oid": blob,
            }
            if len(content) >= LARGE:
                entry["lfs"] = {"oid": self._digest(path, content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        more = cursor + PAGE < len(paths)
        following = f"{self.path.partition('?')[0]}?recursive=true&cursor={cursor + PAGE}"
        self._json(entries, {"Link": f'<{hub.url}{following}>; rel="next"'} if more else {})

    def _digest(self, path: Path, content: bytes) -> str:
        # A file NAME.published beside the folder says what was published, where the bytes were altered since.
        published = self.server.folder.with_name(f"{path.name}.published")
        return published.read_text() if published.exists() else hashlib.sha256(content).hexdigest()

    def _resolve(self, path: str) -> None:
        file = self.server.folder / path
        if not file.is_file():
            self._fail(404)
        elif file.stat().st_size < LARGE:
            self._file(path)
        else:
            self.send_response(302)
            # Another host name for the same address, so that it is another host to a client.
            port = self.server.server_address[1]
            name = "localhost" if self.server.server_address[0] == "127.0.0.1" else socket_name(self.server)
            self.send_header("Location", f"http://{name}:{port}/storage/{path}?signature={SIGNATURE}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self, path: str) -> None:
        file = self.server.folder / path
        if not file.is_file():
            self._fail(404)
            return
        size = file.stat().st_size
        asked = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
        if asked and int(asked[1]) >= size and size:
            self._fail(416)
            return
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked and size else (0, size - 1)
        self.send_response(206 if asked and size else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if asked and size:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with file.open("rb") as content:
            content.seek(first)
            left = last - first + 1
            while left and not self.server.down:
                data = content.read(min(BLOCK, left))
                self.server.spend(len(data))
                self.wfile.write(data)
                left -= len(data)
            if left:
                self.close_connection = True

    def _json(self, what: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def socket_name(hub: Hub) -> str:
    """A name that differs from the address, which the resolver takes for the same: its last octet in hex."""
    first, _, last = str(hub.server_address[0]).rpartition(".")
    return f"{first}.{int(last):#x}"


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", default="owner/tiny")
    parser.add_argument("--revision", default=40 * "a")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--rate", type=float, default=0, help="MB/s")
    said = parser.parse_args()
    hub = Hub(
        said.folder,
        repository=said.repository,
        revision=said.revision,
        token=said.token_file.read_text() if said.token_file else "",
        rate=said.rate * 1e6,
        address=said.address,
        port=said.port,
    )
    sys.stdout.write(f"{hub.server_address[1]}\n")
    sys.stdout.flush()
    hub.serve_forever()


if __name__ == "__main__":
    main()
