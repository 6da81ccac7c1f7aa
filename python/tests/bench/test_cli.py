"""The commands, against a mock endpoint over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from splitrail.bench import cli, cluster
from splitrail.bench.mock import Mock, listen
from splitrail.bench.vllm_serve import VllmServe
from splitrail.cli import app
from splitrail.run.execute import INTERRUPTED, OK
from splitrail.workload import load_curves


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A mock in a thread of its own."""
    found: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with listen(Mock(slots=32, prompt_s=0.02, token_s=0.005)) as place:
            found.append(place)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    done.set()
    thread.join()


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", *arguments])
    return done.exit_code, done.stdout if "--json" in arguments else done.stdout + done.stderr


def test_a_point_is_measured_and_written(url: str, tmp_path: Path) -> None:
    out = tmp_path / "point.json"
    code, said = run(
        *("point", "--url", url, "--model", "m", "--isl", "20", "--osl", "4", "--qps", "8", "--seconds", "3"),
        *("--warm", "0.5", "--layout", "2p2d", "--sla", "ttft_p90=30000", "-o", str(out)),
    )
    # A busy machine may make the client late, which is not steady; it is said either way.
    assert code in (0, 1), said
    assert "achieved/offered" in said
    (curve,) = load_curves(out).curves
    assert (curve.layout, curve.workload.isl.mean, curve.points[0].failed) == ("2p2d", 20, 0)
    assert curve.points[0].ttft["p50"] >= 20


def test_a_limit_that_is_broken_is_exit_code_1(url: str) -> None:
    code, said = run(
        *("point", "--url", url, "--model", "m", "--isl", "20", "--osl", "4", "--qps", "8", "--seconds", "2"),
        *("--warm", "0.5", "--sla", "ttft_p90=1"),
    )
    assert code == 1
    assert "FAIL p90 TTFT <= 1 ms" in said


def test_a_search_ends_and_is_written(url: str, tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    code, said = run(
        *(
            "search",
            "--url",
            url,
            "--model",
            "m",
            "--isl",
            "20",
            "--osl",
            "4",
            "--sla",
            "ttft_p90=1",
            "--near",
            "20",
        ),
        *("--requests", "20", "--budget", "5", "--run-seconds", "2", "-o", str(out), "--json"),
    )
    assert code == 1
    assert json.loads(said)["ok"] is False
    assert load_curves(out).curves[0].sustained[0].qps is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["point", "--url", "http://127.0.0.1:9", "--isl", "8", "--osl", "1", "--qps", "1"],
            "--url goes with --model",
        ),
        (["point", "--url", "http://x", "--model", "m", "--qps", "1"], "--isl and --osl"),
        (["search", "--url", "http://x", "--model", "m", "--isl", "8", "--osl", "1"], "no SLA"),
        (["point", "--url", "u", "--model", "m", "-w", "chatt", "--qps", "1"], "do you mean chat"),
        (
            ["point", "--url", "u", "--model", "m", "-w", "chat", "--isl", "3", "--qps", "1"],
            "leave out --isl",
        ),
        (["matrix", "nowhere.yml", "-i", "inventories/lab"], "nowhere.yml"),
        (["profile", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_run_is_exit_code_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    code, told = run(*arguments)
    assert code == 2
    assert said in " ".join(told.split())


def test_an_endpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, said = run(
        *("search", "--url", "http://127.0.0.1:9", "--model", "m", "--isl", "8", "--osl", "1"),
        *("--sla", "ttft_p90=1000"),
    )
    assert code == 2
    assert "answers no request" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["deploying", "measuring"])
def test_an_interrupted_matrix_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def execute(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(code=INTERRUPTED if when == "deploying" else OK)

    def offer(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(cluster, "read", lambda _: cluster.Cluster("lab", "lab-1p1d", "tcp"))
    monkeypatch.setattr(cli, "execute", execute)
    monkeypatch.setattr(VllmServe, "__call__", offer)
    plan = tmp_path / "plan.yml"
    plan.write_text("topologies: [lab-1p1d]\nworkloads: [lab]\n")
    code, said = run("matrix", str(plan), "-o", str(tmp_path / "out"), "--waive", "nothing is measured here")
    assert code == INTERRUPTED, said
    assert "run it again to go on" in said


def test_a_log_becomes_a_workload(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"time": n, "prompt_tokens": 100, "completion_tokens": 10} for n in range(5)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "mine.yml"
    code, said = run("profile", str(log), "-o", str(out), "--model", "h200-qwen3-14b")
    assert code == 0, said
    assert "prefill" in said
    assert "(predicted)" in said
    assert "mean: 100" in out.read_text()
