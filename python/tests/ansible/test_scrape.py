"""The module that reads a node's exporters, against a server of its own and a made-up /sys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from splitrail.ansible.modules.splitrail_scrape import kept, placed, read, received

PAGE = """# HELP ray_vllm_x_total Things.
# TYPE ray_vllm_x_total counter
ray_vllm_x_total{ReplicaId="a"} 3.0
# TYPE ray_object_store_memory gauge
ray_object_store_memory 1.0
"""


@pytest.fixture
def url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def test_only_what_was_asked_for_is_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    assert kept(read(url, 5), ("ray_vllm_",)).splitlines() == [
        "# TYPE ray_vllm_x_total counter",
        'ray_vllm_x_total{ReplicaId="a"} 3.0',
    ]


def test_an_exporter_that_is_away() -> None:
    with pytest.raises(OSError, match="refused"):
        read("http://127.0.0.1:9/metrics", 1)


def test_bytes_received(tmp_path: Path) -> None:
    for name, count in (("lo", 1000), ("eth0", 7)):
        (tmp_path / f"class/net/{name}/statistics").mkdir(parents=True)
        (tmp_path / f"class/net/{name}/statistics/rx_bytes").write_text(f"{count}\n")
    counters = tmp_path / "class/infiniband/mlx5_0/ports/1/counters"
    counters.mkdir(parents=True)
    (counters / "port_rcv_data").write_text("5\n")
    assert received(tmp_path) == {"net": 7, "rdma": 20}


def test_replicas_that_run_and_those_that_should() -> None:
    replica = {"replica_id": "r1", "state": "RUNNING", "node_ip": "10.0.0.2", "start_time_s": 9.5}
    gone = {**replica, "replica_id": "r2", "state": "STOPPING"}
    state = {"deployments": {"Decode:m": {"target_num_replicas": 2, "replicas": [replica, gone]}}}
    replicas, wanted = placed({"llm": state})
    assert replicas == {
        "r1": {"deployment": "Decode:m", "node": "10.0.0.2", "application": "llm", "started": 9.5}
    }
    assert wanted == {"Decode:m": 2}
