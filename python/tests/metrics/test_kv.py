"""The KV check: the H200 runs of gpu_pd.h200.json pass and fail as they did, and each check can fail."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from splitrail.ansible.filter.splitrail_kv import kv_checks, kv_prompt
from splitrail.fabric.mesh_data import Node, RailPort, Reading, Result, Settings
from splitrail.metrics.kv import Link, bytes_per_token, judge, measured_link, prompt_tokens
from splitrail.metrics.window import Replica, Snapshot, Window, window
from splitrail.proof import Proof
from splitrail.topology import load
from splitrail.verdict import Check, Verdict, verdict_file
from tests.metrics.exporter import Engine

ROOT = Path(__file__).parents[3]
RUNS = ROOT / "python/benchmarks/gpu_pd.h200.json"
# One rail of 400 Gb/s, as it measures.
RAIL = Link(48.0, "rdma", "20260101-000000")


def of(
    kv: dict[str, float],
    *,
    ray: bool,
    bytes_per_token: float = 0.0,
    pool: str = "Decode:m",
    more: dict[str, float] | None = None,
) -> Window:
    """A window in which one engine had these transfers (keys as in gpu_pd.h200.json)."""
    count = int(kv["transfers"])
    engine = Engine("d", counters={"external_prefix_cache_hits": 16000.0 * count, **(more or {})})
    engine.transfer(
        count,
        size=kv["mb"] * 1e6,
        descriptors=kv["descriptors"],
        post_s=kv["post_ms"] / 1e3,
        seconds=kv["ms"] / 1e3,
    )
    replicas = {"d": Replica(pool, "n")}
    # A server of its own is known by its place, not by a replica id.
    if not ray:
        replicas = {"n": Replica(pool, "n")}
    return window(None, Snapshot(1.0, {"n": engine.text(ray=ray)}, replicas), bytes_per_token=bytes_per_token)


def failed(checks: list[dict[str, Any]]) -> set[str]:
    return {check["name"] for check in checks if not check["ok"]}


def runs(layout: str, isl: int) -> list[dict[str, float]]:
    points = json.loads(RUNS.read_text())["points"]
    return [
        point["kv"] for point in points if point["kv"] and (point["layout"], point["isl"]) == (layout, isl)
    ]


@pytest.mark.parametrize("ray", [True, False])
@pytest.mark.parametrize("kv", runs("suite", 16000), ids=str)
def test_the_suites_layout_passes(kv: dict[str, float], ray: bool) -> None:
    checks = judge(of(kv, ray=ray), RAIL)
    assert {"kv.descriptors", "kv.post_time", "kv.rate"} <= {check["name"] for check in checks}
    assert failed(checks) == set()


@pytest.mark.parametrize("kv", runs("default", 16000), ids=str)
def test_eighty_thousand_descriptors_are_named(kv: dict[str, float]) -> None:
    """From exact sums all three see it; from Ray's buckets too, once the bytes of a token are known."""
    assert failed(judge(of(kv, ray=False), RAIL)) == {"kv.descriptors", "kv.post_time", "kv.rate"}
    per_token = kv["mb"] * 1e6 / 16000
    seen = judge(of(kv, ray=True, bytes_per_token=per_token), RAIL)
    assert failed(seen) == {"kv.descriptors", "kv.post_time", "kv.rate"}
    assert all("block_size" in check["hint"] for check in seen if check["name"] == "kv.descriptors")


def test_without_the_bytes_of_a_token_only_what_is_certain_fails() -> None:
    kv = runs("default", 16000)[0]
    assert failed(judge(of(kv, ray=True), RAIL)) == {"kv.descriptors", "kv.post_time"}


GOOD = {"transfers": 10, "mb": 2621.4, "descriptors": 94, "post_ms": 1.2, "ms": 17.6}


def test_nothing_moved() -> None:
    assert failed(judge(of({**GOOD, "transfers": 0}, ray=True), RAIL)) == {"kv.transfers"}


@pytest.mark.parametrize(
    ("counter", "check"),
    [
        ("nixl_num_failed_transfers", "kv.failed"),
        ("nixl_num_kv_expired_reqs", "kv.expired"),
        ("nixl_num_notifications_after_expiry", "kv.expired"),
    ],
)
def test_what_was_lost_is_named(counter: str, check: str) -> None:
    assert failed(judge(of(GOOD, ray=True, more={counter: 1.0}), RAIL)) == {check}


def test_a_slow_path_with_a_good_layout() -> None:
    assert failed(judge(of({**GOOD, "ms": 400}, ray=False), RAIL)) == {"kv.rate"}


def test_short_transfers_are_not_judged() -> None:
    checks = judge(of({**GOOD, "mb": 4, "descriptors": 4000, "ms": 40}, ray=True), RAIL)
    assert failed(checks) == set()
    assert next(one["measured"] for one in checks if one["name"] == "kv.layout").startswith("not judged")


def test_over_tcp_the_rate_is_not_judged() -> None:
    checks = judge(of({**GOOD, "ms": 4000}, ray=False), Link(2.0, "tcp", "r"))
    assert "kv.rate" not in {check["name"] for check in checks}


def test_without_a_proof_there_is_nothing_to_compare_with() -> None:
    assert failed(judge(of(GOOD, ray=True), None)) == {"kv.link"}


def test_where_the_proof_is_waived_only_the_layout_is_judged() -> None:
    assert failed(judge(of(GOOD, ray=True), None, waived=True)) == set()
    slow = judge(of(runs("default", 16000)[0], ray=True), None, waived=True)
    assert failed(slow) == {"kv.post_time"}


def test_aggregated_serving_moves_nothing() -> None:
    assert judge(of(GOOD, ray=True, pool="LLMServer:m"), RAIL) == []


def prove(folder: Path, transport: str) -> None:
    Proof.model_validate(
        {"verb": "fabric", "cluster": "c", "transport": transport, "at": datetime.now(UTC), "ok": True}
    ).save(folder)


def test_the_link_is_the_median_of_the_rails(tmp_path: Path) -> None:
    folder = tmp_path / "r1"
    prove(folder, "rdma")
    nodes = [Node(name=name, address=name, rails=[RailPort(rail=0, name="r0")]) for name in ("a", "b")]
    readings = [
        Reading(source="a", target="b", rail=rail, gbps=gbps) for rail, gbps in enumerate((380, 384, 100))
    ]
    Result(cluster="c", at="now", seconds=1, settings=Settings(), nodes=nodes, readings=readings).save(folder)
    assert measured_link(tmp_path / "now", "c") == Link(47.5, "rdma", "r1")
    assert measured_link(tmp_path / "now", "another") is None


def test_the_link_over_tcp(tmp_path: Path) -> None:
    folder = tmp_path / "r1"
    prove(folder, "tcp")
    check = Check(
        name="fabric.tcp_throughput", host="a", subject="a to b", ok=True, measured=16.0, required=1.0
    )
    Verdict.of([check]).save(verdict_file(folder, "fabric", "a"))
    assert measured_link(tmp_path / "now", "c") == Link(2.0, "tcp", "r1")


def test_bytes_of_a_token() -> None:
    """Qwen3-14B in bf16: 40 layers, 8 KV heads of 128, keys and values of 2 bytes (its config.json)."""
    topology = load("qwen3-14b-1p1d", ROOT / "inventories/topologies")
    assert bytes_per_token(topology, "h200") == 2 * 40 * 8 * 128 * 2
    lab = load("lab-1p1d", ROOT / "inventories/topologies")
    assert bytes_per_token(lab, "cpu") > 0
    unknown = {**lab, "model": {"id": "nobodys-own", "source": "/srv/nobodys-own"}}
    assert bytes_per_token(unknown, "cpu") == 0


@pytest.mark.parametrize(
    ("name", "tokens"), [("lab-1p1d", 2048 - 64), ("qwen3-14b-1p1d", 16000), ("deepseek-v3-1p1d", 16000)]
)
def test_a_prompt_is_long_and_yet_taken(name: str, tokens: int) -> None:
    topology = load(name, ROOT / "inventories/topologies")
    assert prompt_tokens(topology) == tokens
    assert kv_prompt(topology) == tokens


def test_the_filter_reads_what_the_module_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITRAIL_RUN_DIR", str(tmp_path / "now"))
    prove(tmp_path / "r1", "tcp")
    engine = Engine("d")
    engine.transfer(2, size=1e6, descriptors=8, post_s=0.0004, seconds=0.006)
    raw: dict[str, Any] = {
        "head": {"at": 5.0, "replicas": {"d": {"deployment": "Decode:m", "node": "n", "application": "llm"}}},
        "n": {"at": 5.0, "texts": {"ray": engine.text()}, "wire": {"net": 1, "rdma": 0}, "errors": []},
    }
    topology = load("lab-1p1d", ROOT / "inventories/topologies")
    checks = kv_checks(raw, cluster="c", topology=topology, release="cpu")
    assert failed(checks) == {"kv.link"}, "the proof has no measurement"
    same = kv_checks(raw, cluster="c", topology=topology, release="cpu", before=raw)
    assert failed(same) == {"kv.link", "kv.transfers"}, "what moved before counts"
    raw["n"]["errors"] = ["the exporter ray does not answer"]
    with pytest.raises(AnsibleFilterError, match="n: the exporter ray does not answer"):
        kv_checks(raw, cluster="c", topology=topology, release="cpu")
