"""The module that has every replica answer, against a Serve of its own whose counters lag."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.splitrail_ray import Head

from splitrail.ansible.modules.splitrail_warm import NAME, Warmth, cold, predicted, running, served

APP = {
    "name": "llm-b",
    "route_prefix": "/b",
    "args": {"prefill_config": {"model_loading_config": {"model_id": "m"}}, "decode_config": {}},
}
HEALTH = 'ray_serve_deployment_request_counter_total{deployment="Decode:m",replica="d1",route=""} 4.0\n'


class Node:
    """A head, Serve's proxy and a node's exporter in one; each request reaches the next engine."""

    def __init__(self) -> None:
        self.replicas = {"p1": "Prefill:m", "d1": "Decode:m", "d2": "Decode:m", "i1": "LLMRouter"}
        self.dead: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.refuse = False
        self.no_metrics = False
        # Readings of the metrics until they tell what was counted.
        self.lag = 2
        self._since = 0

    def get(self, path: str) -> str:
        if path == "/metrics":
            return self.metrics()
        details: dict[str, Any] = {}
        for replica, name in self.replicas.items():
            one = {"replica_id": replica, "node_ip": "127.0.0.1", "state": "RUNNING"}
            details.setdefault(name, {"replicas": []})["replicas"].append(one)
        return json.dumps({"applications": {"llm-b": {"deployments": details}}})

    def metrics(self) -> str:
        page = HEALTH  # a health check reached it, which warms nothing
        self._since += bool(self.asked)
        if self.asked and self._since > self.lag:
            for replica, name in self.replicas.items():
                if replica in self.dead:
                    continue
                engine = name != "LLMRouter"
                page += (
                    f'ray_vllm_request_success_total{{ReplicaId="{replica}",finished_reason="length"}} 1.0\n'
                    if engine
                    else f'ray_serve_deployment_request_counter_total{{replica="{replica}"}} 1.0\n'
                )
        return page


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    fake = Node()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            broken = self.path == "/metrics" and fake.no_metrics
            self.reply(503 if broken else 200, "" if broken else fake.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append({**body, "path": self.path})
            self.reply(500 if fake.refuse else 200, "{}")

    slept, clock = [0.0], time.monotonic
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.__setitem__(0, slept[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: clock() + slept[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.request_queue_size = 64
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fake.port = server.server_port  # type: ignore[attr-defined]  # a mark for the test alone
    yield fake
    server.shutdown()
    server.server_close()


def warmth(node: Node, folder: Path, timeout_s: float = 60) -> Warmth:
    (folder / "token").write_text("5ec7e7")
    port = node.port  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{port}"
    want = {"serve_url": url, "metrics_port": port, "prompt_words": 8, "timeout_s": timeout_s}
    return Warmth(Head(url, str(folder / "token")), APP, want)


def test_every_replica_answers_once_and_is_not_asked_again(node: Node, tmp_path: Path) -> None:
    first = warmth(node, tmp_path)
    assert predicted(first)
    assert first.finding(first.reach())["ok"]
    assert first.sent == len(node.asked) == 2 * len(node.replicas)
    assert {(one["path"], one["model"]) for one in node.asked} == {("/b/v1/completions", "m")}
    assert len({one["prompt"] for one in node.asked}) == len(node.asked)
    second = warmth(node, tmp_path)
    assert not predicted(second)
    assert second.finding(second.reach())["measured"] == "4 of 4 replicas have answered"
    assert second.sent == 0


def test_a_replica_that_only_passed_health_checks_is_named(node: Node, tmp_path: Path) -> None:
    node.dead = {"d1"}
    one = warmth(node, tmp_path)
    found = one.finding(one.reach())
    assert (found["name"], found["ok"]) == (NAME, False)
    assert found["measured"] == "3 of 4 replicas have answered; not Decode:m d1"
    assert "splitrail rollback" in found["hint"]
    assert "llm_serve_warm_s" in found["hint"]


def test_what_an_engine_says_instead_of_an_answer_is_told(node: Node, tmp_path: Path) -> None:
    node.refuse, node.dead = True, set(node.replicas)
    one = warmth(node, tmp_path, timeout_s=5)
    assert "HTTP Error 500" in one.finding(one.reach())["measured"]


def test_an_exporter_that_stays_away_is_no_success(node: Node, tmp_path: Path) -> None:
    node.no_metrics = True
    one = warmth(node, tmp_path, timeout_s=5)
    found = one.finding(one.reach())
    assert not found["ok"]
    assert "could not be checked: HTTP Error 503" in found["measured"]
    assert not predicted(one)
    assert node.asked == []


def test_an_application_without_replicas_is_not_ready(node: Node, tmp_path: Path) -> None:
    node.replicas = {}
    one = warmth(node, tmp_path, timeout_s=2)
    assert "no replica runs" in one.finding(one.reach())["measured"]


def test_ids_and_counters_as_ray_writes_them() -> None:
    answer = {
        "applications": {
            "llm-a": {
                "deployments": {
                    "Engine0:m": {
                        "replicas": [
                            {"replica_id": "llm-a#Engine0:m#e0", "node_ip": "10.0.0.1", "state": "RUNNING"},
                            {"replica_id": "old", "node_ip": "10.0.0.1", "state": "STOPPING"},
                        ]
                    }
                }
            }
        }
    }
    replicas = running(answer, "llm-a")
    assert list(replicas) == ["llm-a#Engine0:m#e0"]
    assert cold(replicas, served('ray_vllm_request_success_total{ReplicaId="e0"} 0.0')) == list(replicas)
    assert cold(replicas, served('ray_serve_deployment_request_counter{replica="e0"} 9.0')) == list(replicas)
    assert cold(replicas, served('ray_vllm_request_success_total{engine="0",ReplicaId="e0"} 2.0')) == []
