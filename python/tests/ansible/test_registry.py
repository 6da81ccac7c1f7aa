"""The registry's probe, against a registry that works and ones that fail at each step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from splitrail.ansible.modules.splitrail_registry import Registry, digest_of, round_trip, wait


class Handler(BaseHTTPRequestHandler):
    """As much of the registry API as the probe uses, with the faults that a test asks for."""

    stored: ClassVar[dict[str, bytes]]
    refused: ClassVar[frozenset[str]]
    altered: ClassVar[bool]

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle_call(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        digest = parse_qs(parts.query).get("digest", [parts.path.rpartition("/")[2]])[0]
        if self.command in self.refused and parts.path != "/v2/":
            self.answer(503, b"disk full")
        elif self.command == "POST":
            self.answer(202, Location="/upload/1?state=x")
        elif self.command == "PUT":
            matches = digest == digest_of(body)
            if matches:
                self.stored[digest] = body
            self.answer(201 if matches else 400)
        elif self.command == "DELETE":
            self.answer(202 if self.stored.pop(digest, None) else 404)
        elif parts.path == "/v2/":
            self.answer(200, b"{}")
        elif digest in self.stored:
            self.answer(200, self.stored[digest] + (b"!" if self.altered else b""))
        else:
            self.answer(404)

    do_GET = do_POST = do_PUT = do_DELETE = handle_call  # names that http.server asks for


@contextmanager
def registry(*refused: str, altered: bool = False) -> Iterator[tuple[Registry, dict[str, bytes]]]:
    """A registry on a port of its own, and what it holds."""
    stored: dict[str, bytes] = {}
    members = {"stored": stored, "refused": frozenset(refused), "altered": altered}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), members)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Registry(f"http://127.0.0.1:{server.server_address[1]}"), stored
        server.shutdown()
        thread.join()


def test_a_good_registry_passes_and_keeps_no_manifest() -> None:
    with registry() as (good, stored):
        checks = wait(good, 5) + round_trip(good)
    assert [check["name"] for check in checks if check["ok"]] == [
        "image_registry.answers",
        "image_registry.push",
        *["image_registry.pull"] * 3,
    ]
    assert len(checks) == 5
    assert not any(b"schemaVersion" in content for content in stored.values())


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_refused_push_carries_the_registry_s_words(method: str) -> None:
    with registry(method) as (full, _):
        (bad,) = round_trip(full)
    assert bad["name"] == "image_registry.push"
    assert "disk full" in bad["measured"]


def test_a_refused_pull_fails_for_each_part() -> None:
    with registry("GET") as (broken, _):
        checks = round_trip(broken)
    assert [check["ok"] for check in checks] == [True, False, False, False]


def test_other_bytes_than_were_pushed_fail() -> None:
    with registry(altered=True) as (corrupt, _):
        checks = round_trip(corrupt)
    assert [check["ok"] for check in checks] == [True, False, False, False]


def test_a_probe_that_cannot_be_removed_fails() -> None:
    with registry("DELETE") as (stubborn, _):
        checks = round_trip(stubborn)
    assert [check["name"] for check in checks if not check["ok"]] == ["image_registry.remove"]


def test_silence_is_reported_after_the_time_given() -> None:
    with registry() as (gone, _):
        pass
    (bad,) = wait(gone, 0)
    assert not bad["ok"]
    assert "journalctl" in bad["hint"]
