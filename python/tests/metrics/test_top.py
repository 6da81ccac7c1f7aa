"""`splitrail top`: what it warns of, its page, and a whole run against exporters on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.metrics.show import screen, write_page
from splitrail.metrics.warn import warnings
from splitrail.metrics.window import Engine, Replica, Transfers, Window, snapshot_of, window
from tests.metrics import exporter


def moved(*values: float) -> Transfers:
    """Transfers of these bytes, in a great many descriptors."""
    engine = exporter.Engine("d")
    engine.transfer(len(values), size=values[0], descriptors=80_000, post_s=0.27, seconds=0.45)
    snapshot = snapshot_of({"n": {"at": 1, "texts": {"ray": engine.text()}}})
    return window(None, snapshot).engines[0].kv


def quiet() -> Window:
    """Two engines on two nodes that do what they should."""
    engines = [Engine("p", "prefill", "n1", 10), Engine("d", "decode", "n2", 10)]
    return Window(10, engines, requests=20, at=1e9)


def test_nothing_to_warn_of() -> None:
    assert warnings(quiet(), "rdma") == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unread": {"n3": "cannot be reached"}}, "n3 was not read"),
        ({"wanted": {"Decode:m": 2}, "replicas": {"d": Replica("Decode:m")}}, "Decode:m: 1 of 2 replicas"),
        ({"engines": []}, "no engine exports metrics"),
        ({"errors": 3.0}, "3 requests ended with an error"),
    ],
)
def test_what_a_window_warns_of(change: dict[str, object], word: str) -> None:
    found = warnings(replace(quiet(), **change))  # type: ignore[arg-type]  # the table's own types
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kv_use": 0.97}, "KV cache 97% full"),
        ({"preemptions": 2.0}, "2 requests were evicted"),
        ({"kv": replace(Transfers(), failed=1.0)}, "1 KV transfers failed"),
        ({"kv": replace(Transfers(), expired=1.0)}, "given up before they were fetched"),
        ({"kv": moved(1e9)}, "bound by descriptors"),
    ],
)
def test_what_an_engine_warns_of(change: dict[str, object], word: str) -> None:
    now = quiet()
    now.engines[1] = replace(now.engines[1], **change)  # type: ignore[arg-type]  # the table's own types
    found = warnings(now)
    assert len(found) == 1
    assert word in found[0]


def test_kv_caches_that_move_without_rdma() -> None:
    now = quiet()
    now.engines[1] = replace(now.engines[1], kv=moved(1e9, 1e9))
    now.wire = {"n2": {"rdma": 0, "net": 3_000_000_000}}
    assert any("without RDMA" in line for line in warnings(now, "rdma"))
    assert not any("without RDMA" in line for line in warnings(now, "tcp"))
    now.wire = {"n2": {"rdma": 3_000_000_000, "net": 0}}
    assert not any("without RDMA" in line for line in warnings(now, "rdma"))


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "top.html"
    write_page(page, [quiet(), quiet(), quiet()], ["<b>a warning</b>"], "lab", 15)
    text = page.read_text()
    assert "&lt;b&gt;a warning" in text
    assert "1P1D" in text
    assert "polyline" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "src=" not in text


def test_the_screen_shows_pools_and_warnings() -> None:
    console = Console(width=160, record=True, force_terminal=False)
    with console.capture() as shown:
        console.print(screen(quiet(), ["look here"]))
    assert "1P1D" in shown.get()
    assert "prefill" in shown.get()
    assert "! look here" in shown.get()


@pytest.fixture
def server() -> Iterator[str]:
    """A vLLM server's exporter whose counters rise by a request each time it is read."""
    read = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            read[0] += 1
            engine = exporter.Engine(counters={"request_success": read[0]})
            engine.seen = {
                "time_to_first_token_seconds": [0.05] * read[0],
                "request_time_per_output_token_seconds": [0.02] * read[0],
            }
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(engine.text(ray=False).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def test_a_server_of_its_own(server: str, tmp_path: Path) -> None:
    page = tmp_path / "top.html"
    arguments = ["top", "--url", server, "--once", "--json", "--seconds", "1", "--html", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["engines"][0]["finished"] == 1
    assert 40 < told["ttft_ms"]["p50"] <= 60
    assert told["ratio"] == "1agg"
    assert "Nothing to warn of" in page.read_text()


def test_a_server_that_is_away() -> None:
    done = CliRunner().invoke(app, ["top", "--url", "http://127.0.0.1:9", "--once", "--json"])
    assert done.exit_code == 2
    assert "127.0.0.1:9" in json.loads(done.stdout)["error"]
