"""Stands in for Ray Serve's proxy: tells who asked for what, streams, and breaks off when asked to.

usage: serve.py ADDRESS PORT
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy(BaseHTTPRequestHandler):
    """Answers every path of both slots."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """The path as it arrived, and whether the key did."""
        self.answer(200, {"path": self.path, "authorization": self.headers.get("Authorization")})

    def do_POST(self) -> None:
        """A stream of five pieces, or an error."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/error"):
            self.answer(500, {"path": self.path})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(5):
            piece = f"data: {number} {self.path}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(0.2)  # so that one who gathers the pieces shows
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status: int, document: dict[str, object]) -> None:
        """Send a document."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Proxy).serve_forever()
