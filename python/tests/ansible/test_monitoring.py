"""The checks of the role monitoring, against a made-up exporter and Prometheus; each is seen to fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from splitrail.ansible.modules.splitrail_monitoring import (
    exporter_check,
    rule_check,
    server_checks,
    target_checks,
)

GOOD = {"labels": {"job": "node", "instance": "a:9100"}, "health": "up"}
BAD = {"labels": {"job": "node", "instance": "b:9100"}, "health": "down", "lastError": "no route"}
RULE = {"name": "r", "health": "ok"}


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address, and what it answers by path; what is missing is a 404."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write((found if isinstance(found, str) else json.dumps(found)).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", answers
    made.shutdown()
    made.server_close()


def test_an_exporter(server: tuple[str, dict[str, Any]]) -> None:
    url, answers = server
    answers["/metrics"] = "node_boot_time_seconds 1\n"
    assert exporter_check(f"{url}/metrics", time.monotonic())["ok"]
    answers["/metrics"] = "another_exporter 1\n"
    assert not exporter_check(f"{url}/metrics", time.monotonic())["ok"]
    away = exporter_check("http://127.0.0.1:9/metrics", time.monotonic())
    assert not away["ok"]
    assert "could not be checked" in away["measured"]


def test_a_server(server: tuple[str, dict[str, Any]]) -> None:
    url, answers = server
    answers["/api/v1/targets"] = {"data": {"activeTargets": [GOOD]}}
    answers["/api/v1/rules"] = {"data": {"groups": [{"rules": [RULE]}]}}
    assert all(one["ok"] for one in server_checks(url, {"node": 1}, time.monotonic()))
    assert not all(one["ok"] for one in server_checks(url, {"node": 1, "ray": 1}, time.monotonic()))
    del answers["/api/v1/rules"]
    assert [one["ok"] for one in server_checks(url, {"node": 1}, time.monotonic())] == [False]


def test_targets_that_are_down_or_missing() -> None:
    down = target_checks([GOOD, BAD], {"node": 2})[0]
    assert not down["ok"]
    assert "b:9100: no route" in down["measured"]
    assert not target_checks([GOOD], {"node": 2})[0]["ok"]
    assert target_checks([GOOD, BAD], {"other": 0})[0]["ok"]


def test_rules_that_fail_or_are_missing() -> None:
    assert rule_check([{"rules": [RULE]}])["ok"]
    assert not rule_check([])["ok"]
    bad = rule_check([{"rules": [RULE, {"name": "s", "health": "err", "lastError": "many-to-many"}]}])
    assert not bad["ok"]
    assert "s: many-to-many" in bad["measured"]
