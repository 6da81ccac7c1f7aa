"""Records that are looked at again: lists, one run, two runs side by side; half-written ones too."""

from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.run.history import Difference, find, read
from splitrail.run.record import Play, RecordError, Run
from splitrail.run.recorder import Recorder
from splitrail.verdict import Check, Verdict, verdict_file


def make(
    runs: Path,
    name: str,
    *,
    changed: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    memory: float = 16,
    seconds: float = 2.0,
    extra_vars: tuple[str, ...] = (),
    hosts: tuple[str, ...] = ("n1", "n2"),
) -> Path:
    """A record written by the real recorder: one play of two tasks, and a check of memory on n1."""
    now = [0.0]
    recorder = Recorder(
        runs / name,
        Run(verb="provision", started=datetime.now(UTC) - timedelta(seconds=9), inventory=["/inv"]),
        clock=lambda: now[0],
    )
    recorder.given(extra_vars)
    recorder.play("Provision", "provision")
    for task, role in (("Install", "engine"), ("Look", None)):
        recorder.task(task, role, ())
        for host in hosts:
            recorder.host_starts(host, task)
        now[0] += seconds if task == "Install" else 1.0
        for host in hosts:
            down = host in failed and task == "Install"
            state = "failed" if down else "changed" if host in changed and task == "Install" else "ok"
            recorder.result(
                host=host,
                task_id=task,
                task=task,
                role=role,
                status=state,  # type: ignore[arg-type]  # one of three
                message="disk full" if down else None,
            )
    check = Check(
        name="preflight.memory", host="n1", subject="MemTotal", ok=memory >= 8, measured=memory, required=8
    )
    Verdict.of([check]).save(verdict_file(runs / name, "preflight", "n1"))
    recorder.end(failed=failed, unreachable=())
    return runs / name


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "site.yml").write_text("[]\n")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    make(folder, "20261101T100000Z", changed=("n1", "n2"), extra_vars=("b", "a"))
    make(folder, "20261102T100000Z", changed=("n2",), failed=("n1",), memory=4, seconds=5)
    return folder


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["runs", *words])
    return done.exit_code, done.output


def document(*words: str) -> Any:
    return json.loads(CliRunner().invoke(app, ["runs", *words, "--json"]).stdout)


def test_list(runs: Path) -> None:
    newest, oldest = document("list")
    assert (newest["run"], newest["outcome"], newest["changed"]) == ("20261102T100000Z", "failed", 1)
    assert (newest["checks"], newest["checks_failed"]) == (1, 1)
    assert (oldest["outcome"], oldest["changed"], oldest["hosts"]) == ("ok", 2, 2)
    assert [line["run"] for line in document("list", "--failed")] == [runs.name and "20261102T100000Z"]
    assert document("list", "--verb", "serve") == []
    assert len(document("list", "-n", "1")) == 1
    code, said = run("list")
    assert code == 0
    assert "20261101T100000Z" in said


def test_show(runs: Path) -> None:
    shown = document("show", "last")
    assert shown["by_host"] == {"n1": {"failed": 1, "ok": 1}, "n2": {"changed": 1, "ok": 1}}
    assert shown["slowest"][0] == {"seconds": 5.0, "play": "Provision", "task": "engine : Install"}
    assert shown["changes"] == [{"play": "Provision", "task": "engine : Install", "hosts": ["n2"]}]
    assert shown["failures"][0]["message"] == "disk full"
    assert shown["failed_checks"][0]["measured"] == 4
    assert document("show", "last~1")["extra_vars"] == ["a", "b"]
    code, said = run("show")
    assert code == 0
    assert "failed: n1 | Install: disk full" in said
    assert "check failed: n1: preflight.memory" in said
    assert str(runs) in said.replace("\n", "")


def test_diff(runs: Path) -> None:
    difference = document("diff")
    assert difference["settings"] == {"extra_vars": [["a", "b"], []]}
    times = {entry["what"]: entry["seconds"] for entry in difference["times"]}
    assert times == {"play Provision": [3.0, 6.0], "role engine": [2.0, 5.0]}
    assert difference["changes"] == [{"task": "engine : Install", "hosts": [["n1", "n2"], ["n2"]]}]
    (flip,) = difference["flipped"]
    assert flip["check"] == "preflight.memory n1 (MemTotal)"
    assert [check["ok"] for check in flip["checks"]] == [True, False]
    code, said = run("diff")
    assert code == 1, "a check fails that passed before"
    assert "ok -> failed" in said
    assert "+3.0" in said
    assert run("diff", "last", "last~1")[0] == 0, "mended"
    assert run("diff", "last", "last")[0] == 0
    assert Difference(read(runs / "20261101T100000Z"), read(runs / "20261101T100000Z")).settings() == {}


def test_a_check_that_only_one_run_made(runs: Path) -> None:
    other = make(runs, "20261103T100000Z")
    (verdict_file(other, "preflight", "n1")).unlink()
    (other / "verdict.json").unlink()
    gone = Difference(read(runs / "20261102T100000Z"), read(other)).flipped()
    assert [(a is not None and a.ok, b) for _, a, b in gone] == [(False, None)]
    assert Difference(read(runs / "20261101T100000Z"), read(other)).flipped() == []


def test_names_of_runs(runs: Path) -> None:
    assert find(runs, "20261101").name == "20261101T100000Z"
    assert find(runs, "last~1").name == "20261101T100000Z"
    assert find(runs, f"{runs}/20261101T100000Z").name == "20261101T100000Z"
    for name, said in (
        ("2026", "several runs begin so: 20261101T100000Z, 20261102T100000Z"),
        ("last~7", "holds 2 runs"),
        ("x", "the newest: 20261102T100000Z, 20261101T100000Z"),
        ("/gone/run", "no run record"),
    ):
        with pytest.raises(RecordError, match=said):
            find(runs, name)
    code, said = run("show", "x")
    assert code == 2
    assert "no such run" in said


def test_a_killed_run_is_shown_with_what_it_left(runs: Path) -> None:
    folder = runs / "20261104T100000Z"
    killed = Run(
        verb="fabric", started=datetime.now(UTC), inventory=["/inv"], plays=[Play(name="F", verb="fabric")]
    )
    killed.save(folder)
    event = {"play": "F", "role": None, "task": "t", "host": "n1", "status": "changed", "changed": True}
    (folder / "events.jsonl").write_text(json.dumps(event) + '\n{"play": "F", "ro')
    shown = document("show")
    assert (shown["outcome"], shown["seconds"], shown["changed"]) == ("interrupted", None, 1)
    assert "1 lines cannot be read" in shown["notes"][0]
    (folder / "timings.json").write_text("{")
    assert "timings.json" in document("show")["notes"][0]
    assert run("list")[0] == 0


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP and keeps what came."""

    taken: ClassVar[list[Any]] = []
    answer = 200

    def do_POST(self) -> None:  # the name that http.server calls
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        scopes = [scope for of in request.resource_spans for scope in of.scope_spans]
        Collector.taken.extend(span for scope in scopes for span in scope.spans)
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.mark.usefixtures("runs")
def test_export_as_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        code, said = run("export", "last", "--endpoint", endpoint)
        assert code == 0, said
        spans = {(span.name, _attribute(span, "splitrail.host")): span for span in Collector.taken}
        assert len({span.trace_id for span in spans.values()}) == 1
        assert set(spans) == {
            *(("provision", ""), ("play Provision", "")),
            *((task, host) for task in ("Install", "Look") for host in ("n1", "n2")),
        }
        failed = spans["Install", "n1"]
        assert (failed.status.code, failed.status.message) == (2, "disk full")
        assert failed.parent_span_id == spans["play Provision", ""].span_id
        assert (failed.end_time_unix_nano - failed.start_time_unix_nano) / 1e9 == pytest.approx(5)
        assert _attribute(spans["provision", ""], "splitrail.outcome") == "failed"
        monkeypatch.setattr(Collector, "answer", 400)
        code, said = run("export", "last", "--endpoint", endpoint)
        assert code == 2
        assert "took 0 of 6 spans" in said
    finally:
        server.shutdown()
        server.server_close()
    assert run("export", "none", "--endpoint", endpoint)[0] == 2


def _attribute(span: Any, key: str) -> str:
    return next((one.value.string_value for one in span.attributes if one.key == key), "")
