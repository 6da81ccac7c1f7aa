"""The prompts that make KV caches move, against an endpoint that answers, refuses or is away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from splitrail.ansible.modules.splitrail_kv_probe import ProbeError, routes, send


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Takes prompts of up to 100 tokens; its address, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append({"path": self.path, **body})
            self.send_response(200 if len(body["prompt"]) <= 100 else 400)
            self.end_headers()
            self.wfile.write(b"too long" if len(body["prompt"]) > 100 else b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/a", got
    made.shutdown()
    made.server_close()


def test_each_prompt_is_new(endpoint: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = endpoint
    assert send(url, "m", 50, 5) >= 0
    send(url, "m", 50, 5)
    assert [one["path"] for one in got] == ["/a/v1/completions"] * 2
    assert got[0]["prompt"] != got[1]["prompt"]
    assert len(got[0]["prompt"]) == 50


def test_a_refusal_says_why(endpoint: tuple[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(ProbeError, match="answered 400 to a prompt of 101 tokens: too long"):
        send(endpoint[0], "m", 101, 5)


def test_an_endpoint_that_is_away() -> None:
    with pytest.raises(ProbeError, match="did not answer"):
        send("http://127.0.0.1:9", "m", 5, 1)


def test_routes_of_what_runs() -> None:
    run = {"status": "RUNNING", "route_prefix": "/"}
    assert routes({"a": {**run, "route_prefix": "/a"}, "b": {**run, "status": "DEPLOYING"}}) == ["/a"]
    assert routes({"a": run}) == [""]
    assert routes({"a": {**run, "route_prefix": None}}) == []
