"""Public trace formats, access logs and metrics become workloads."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from splitrail.bench import traces
from splitrail.bench.profile import of_source
from splitrail.bench.traffic import tokens
from splitrail.bench.workloads import by_name, describe, of_trace
from splitrail.plan.cli import find_model
from splitrail.workload import WorkloadError

ROOT = Path(__file__).parents[3]
MOONCAKE = [
    {"timestamp": 0, "input_length": 1024, "output_length": 10, "hash_ids": [1, 2]},
    {"timestamp": 500, "input_length": 1100, "output_length": 20, "hash_ids": [1, 2, 3]},
    {"timestamp": 2000, "input_length": 600, "output_length": 30, "hash_ids": [9, 10]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,Conversation log
"""
LOG = [
    {"time": f"2026-11-20T10:00:0{n}Z", "prompt_tokens": 100 + n, "completion_tokens": 10} for n in range(5)
]


def write(folder: Path, name: str, content: str | list[dict[str, object]]) -> Path:
    path = folder / name
    path.write_text(
        content if isinstance(content, str) else "".join(json.dumps(one) + "\n" for one in content)
    )
    return path


def test_mooncake(tmp_path: Path) -> None:
    name, requests, block = traces.load(write(tmp_path, "t.jsonl", MOONCAKE))
    assert (name, block) == ("mooncake", 512)
    assert [(one.at_s, one.isl, one.osl) for one in requests] == [
        (0, 1024, 10),
        (0.5, 1100, 20),
        (2, 600, 30),
    ]
    assert describe(requests, block).hit_rate == pytest.approx(1024 / 2724, abs=1e-4)


def test_prompts_share_what_the_trace_says(tmp_path: Path) -> None:
    traffic = of_trace(write(tmp_path, "t.jsonl", MOONCAKE)).draw(1.0, 3.0, 0, 0.0)
    first, second, third = (tokens(traffic, one) for one in traffic.requests)
    assert len(second) == 1100
    assert first == second[:1024]
    assert first[:512] != third[:512]


def test_a_trace_is_replayed_at_a_rate_for_as_long_as_needed(tmp_path: Path) -> None:
    traffic = of_trace(write(tmp_path, "t.jsonl", MOONCAKE)).draw(2.0, 60.0, 0, 0.0)
    at = [one.at_s for one in traffic.requests]
    assert len(at) == 120
    assert (len(at) - 1) / (at[-1] - at[0]) == pytest.approx(2.0)
    assert all(later >= earlier for earlier, later in pairwise(at))


def test_azure_and_burstgpt_and_logs(tmp_path: Path) -> None:
    name, requests, _ = traces.load(write(tmp_path, "a.csv", AZURE))
    assert name == "azure"
    assert requests[1].at_s - requests[0].at_s == pytest.approx(4.314579, abs=1e-4)
    assert [one.isl for one in requests] == [374, 396]
    name, requests, _ = traces.load(write(tmp_path, "b.csv", BURSTGPT))
    assert (name, len(requests)) == ("burstgpt", 2)  # one failed
    name, requests, _ = traces.load(write(tmp_path, "l.jsonl", LOG))
    assert (name, len(requests)) == ("access log", 5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "known are mooncake"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "request 1"),
        ('{"timestamp": 0}\nnot json\n', "known are"),
        ('{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1]}\nno\n', "line 2"),
        ('{"timestamp": 0, "input_length": 900, "output_length": 1, "hash_ids": [1]}\n', "no prompt of 900"),
        ("", "no request"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = write(tmp_path, "bad", content)
    with pytest.raises(WorkloadError, match=f"(?i)bad.*{said}"):
        traces.load(path)


def test_a_trace_tells_its_workload(tmp_path: Path) -> None:
    profile = of_source(write(tmp_path, "l.jsonl", LOG), model=find_model("h200-qwen3-14b"))
    assert profile.requests == 5
    assert profile.qps == pytest.approx(1.0)
    assert profile.workload.isl.mean == pytest.approx(102)
    assert profile.workload.arrival_cv == 0
    assert profile.predicted
    assert profile.prefill_share is not None
    assert 0 < profile.prefill_share < 0.5
    written = write(tmp_path, "mine.yml", profile.file())
    assert by_name(str(written), tmp_path).workload == profile.workload


def exporter(count: int) -> str:
    """What a vLLM server exports after so many requests of 900 tokens, 1 s of prefill, 3 s of decode."""
    registry = CollectorRegistry()
    prompt = Histogram("vllm:request_prompt_tokens", "", buckets=(500, 1000, 2000), registry=registry)
    answer = Histogram("vllm:request_generation_tokens", "", buckets=(50, 100), registry=registry)
    times = {
        name: Histogram(f"vllm:request_{name}_time_seconds", "", buckets=(1, 5), registry=registry)
        for name in ("prefill", "decode", "queue")
    }
    asked = Counter("vllm:prefix_cache_queries", "", registry=registry)
    hit = Counter("vllm:prefix_cache_hits", "", registry=registry)
    for _ in range(count):
        prompt.observe(900)
        answer.observe(80)
        times["prefill"].observe(1.0)
        times["decode"].observe(3.0)
        times["queue"].observe(1.0)
        asked.inc(900)
        hit.inc(450)
    return generate_latest(registry).decode()


def test_metrics_tell_lengths_and_shares_of_time(tmp_path: Path) -> None:
    path = write(tmp_path, "now.txt", exporter(30))
    profile = of_source(path, before=write(tmp_path, "before.txt", exporter(10)))
    assert profile.requests == 20
    assert profile.workload.isl.mean == pytest.approx(900)
    assert profile.workload.osl.mean == pytest.approx(80)
    assert profile.workload.hit_rate == pytest.approx(0.5)
    assert profile.prefill_share == pytest.approx(0.25)
    assert profile.waiting_share == pytest.approx(0.2)
    assert not profile.predicted


def test_metrics_without_requests_are_no_profile(tmp_path: Path) -> None:
    path = write(tmp_path, "now.txt", exporter(5))
    with pytest.raises(WorkloadError, match="no request was counted"):
        of_source(path, before=path)


def test_shipped_workloads_are_readable() -> None:
    folder = ROOT / "inventories/workloads"
    names = sorted(path.stem for path in folder.glob("*.yml"))
    assert names
    for name in names:
        load = by_name(name, folder)
        assert load.sla, name
        at = np.array([one.at_s for one in load.draw(2.0, 30.0, 0, 0.0).requests])
        assert len(at) == pytest.approx(60, abs=2)


def test_an_unknown_workload_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="do you mean chat"):
        by_name("chatt", ROOT / "inventories/workloads")
    both = write(tmp_path, "both.yml", "workload: {isl: {mean: 1}, osl: {mean: 1}}\ntrace: x\n")
    with pytest.raises(WorkloadError, match="either workload"):
        by_name(str(both), tmp_path)
