"""The load generator of the image: what it is given, what comes back, and the program that runs inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitrail.bench import inside
from splitrail.bench.traffic import draw
from splitrail.bench.vllm_serve import VllmServe, combined, without_warm_up
from splitrail.project import Project
from splitrail.run.playbook import Options
from splitrail.workload import Lengths, Workload, WorkloadError

WORK = Workload(isl=Lengths(mean=300), osl=Lengths(mean=8), hit_rate=0.5)
# Stands in for vllm.benchmarks.serve: reads the trace as the data set timed_trace does; each request took
# 10 ms to its first token and 50 to its last, and most were sent 2 ms late.
VLLM = """
import json, os, time
def add_cli_args(parser):
    datasets = ["random"] if "{mode}" == "old" else ["random", "timed_trace"]
    parser.add_argument("--dataset-name", choices=datasets)
    parser.add_argument("--timed-trace-chunk-hash-size", type=int)
    parser.add_argument("--num-prompts", type=int)
    for name in ("backend", "base-url", "endpoint", "model", "tokenizer", "dataset-path", "result-dir",
                 "result-filename", "temperature", "ready-check-timeout-sec", "percentile-metrics"):
        parser.add_argument("--" + name, required=True)
    for name in ("disable-tqdm", "save-result", "save-detailed"):
        parser.add_argument("--" + name, action="store_true")

def main(args):
    if "{mode}" == "broken":
        raise SystemExit("out of memory")
    if "{mode}" == "slow":
        open(args.result_dir + "/../began", "w").write(str(os.getpid()))
        time.sleep(60)
    lines = [json.loads(line) for line in open(args.dataset_path)]
    assert args.save_result and args.save_detailed and len(lines) == args.num_prompts
    block = args.timed_trace_chunk_hash_size
    assert all(len(one["hash_ids"]) * block >= one["input_length"] for one in lines)
    words = json.load(open(args.tokenizer + "/tokenizer.json"))["model"]["vocab"]
    assert 100 in words.values() and 999 in words.values()
    assert os.environ["OPENAI_API_KEY"] == "secret" and int(os.environ["PYTHONHASHSEED"]) >= 0
    result = dict(
        start_times=[1000.0 + one["timestamp"] + 0.002 * (n % 10 > 0) for n, one in enumerate(lines)],
        ttfts=[0.01] * len(lines), latencies=[0.05] * len(lines),
        output_lens=[one["output_length"] for one in lines], errors=[""] * len(lines),
    )
    json.dump(result, open(args.result_dir + "/" + args.result_filename, "w"))
"""


def job(processes: int = 1) -> dict[str, Any]:
    generator = VllmServe(
        Project(Path("/nowhere")), Options("/nowhere"), processes, "http://h:8000", "secret"
    )
    assert "secret" not in repr(generator)
    return {**generator.job(draw(WORK, 4.0, 10, 0)), "model": "m"}


def begin(tmp_path: Path, mode: str) -> subprocess.Popen[str]:
    """The program with its stand-in for vLLM; it waits for its job."""
    package = tmp_path / mode / "vllm/benchmarks"
    package.mkdir(parents=True)
    (package / "serve.py").write_text(VLLM.format(mode=mode))
    return subprocess.Popen(
        [sys.executable, inside.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the lock is, which no other test is to take.
        env={**os.environ, "PYTHONPATH": str(tmp_path / mode), "TMPDIR": str(tmp_path)},
    )


def offered(tmp_path: Path, mode: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with begin(tmp_path, mode) as running:
        out, _ = running.communicate(json.dumps(asked), timeout=60)
        return running.returncode, json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("processes", [1, 3])
def test_planned_traffic_comes_back_measured(tmp_path: Path, processes: int) -> None:
    asked = job(processes)
    code, found = offered(tmp_path, "good", asked)
    assert code == 0
    run = combined(without_warm_up(found["shards"], asked["shards"][0][:8]))
    assert len(run.planned) == 40
    assert run.ok.all()
    assert np.median(run.lag_ms) == pytest.approx(2, abs=0.1)
    assert np.median(run.seconds("ttft")) == pytest.approx(0.012, abs=1e-3)
    assert np.median(run.seconds("tpot")) == pytest.approx(0.04 / 7, abs=1e-4)


def test_an_image_without_the_data_set_is_named_with_the_cure(tmp_path: Path) -> None:
    code, found = offered(tmp_path, "old", job())
    assert code == 2
    assert "--generator http" not in found["error"]
    assert "--url" in found["error"]


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    code, found = offered(tmp_path, "broken", job())
    assert code == 2
    assert "out of memory" in found["error"]


def test_a_job_ends_the_one_that_an_interrupted_controller_left(tmp_path: Path) -> None:
    left = begin(tmp_path, "slow")
    with left:
        assert left.stdin
        left.stdin.write(json.dumps(job()))
        left.stdin.close()
        deadline = time.monotonic() + 30
        while not (began := tmp_path / "began").exists() or not began.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        code, found = offered(tmp_path, "good", job())
        assert (code, len(found["shards"])) == (0, 1)
        assert left.wait(timeout=10) == -signal.SIGKILL
        # And its load generator with it; what is dead and not yet waited for has no command line.
        command = Path("/proc", began.read_text(), "cmdline")
        assert not command.exists() or not command.read_bytes()


def test_the_job_holds_prompts_as_blocks_that_are_served_once_before() -> None:
    asked = job(2)
    assert len(asked["shards"]) == 2
    # Forty requests, and one for each of the eight prefixes, ten seconds before.
    assert sum(len(shard) for shard in asked["shards"]) == 48
    first = asked["shards"][0]
    assert max(line[0] for line in first[:8]) < 10 <= min(line[0] for line in first[8:])
    assert {line[2] for line in first[:8]} == {1}
    assert all(
        len(blocks) * asked["block"] >= isl for shard in asked["shards"] for _, isl, _, blocks in shard
    )


def shard(begun: float, at: list[float], errors: list[str] | None = None) -> dict[str, Any]:
    count = len(at)
    return {
        "planned": at,
        "start": [begun + one for one in at],
        "ttft": [0.1] * count,
        "latency": [0.2] * count,
        "tokens": [4] * count,
        "errors": errors or [""] * count,
    }


def test_shards_that_began_apart_are_put_on_one_clock() -> None:
    run = combined([shard(100.0, [0.0, 10.0]), shard(103.0, [1.0, 11.0])])
    # The first shard began three seconds before the second: second 0 is when all send.
    assert list(run.planned) == [-3.0, 1.0, 7.0, 11.0]
    assert list(run.lag_ms) == [0.0] * 4
    with pytest.raises(WorkloadError, match="100 s apart"):
        combined([shard(100.0, [0.0]), shard(200.0, [0.0])])


def test_failed_requests_are_failures() -> None:
    run = combined([shard(5.0, [0.0, 1.0], ["", "Bad Gateway"])])
    assert list(run.ok) == [True, False]
    assert run.errors == ("Bad Gateway",)
