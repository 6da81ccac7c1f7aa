"""`splitrail rebalance --auto` on exporters' pages: what it reads, says and applies, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.metrics.collect import CollectError
from splitrail.metrics.window import Replica, Snapshot
from splitrail.serving.auto import Policy, Ratio
from splitrail.serving.auto_run import NoRatio, automatic, ratio_of
from tests.metrics import exporter

POLICY = Policy(sla=("ttft_p90=100", "tpot_p90=200"), windows=2, requests=5, cool_down_s=0)
LIVE = {"name": "llm-a", "ratio": {"prefill": 2, "decode": 2}}


class Cluster:
    """Two prefill engines that take half a second a prompt, two decode engines at ease, and a canary."""

    def __init__(self) -> None:
        self.reads = 0
        self.down = False

    def __call__(self) -> Snapshot:
        if self.down:
            raise CollectError("no host could be reached")
        self.reads += 1
        count = 20 * self.reads
        pages, replicas = "", {}
        for name, pool, ttft in (("p1", "Prefill", 0.5), ("p2", "Prefill", 0.5), ("d1", "Decode", 0.001)):
            engine = exporter.Engine(name, counters={"request_success": count})
            engine.seen = {
                "time_to_first_token_seconds": [ttft] * count,
                "request_time_per_output_token_seconds": [0.02] * count,
            }
            pages += engine.text()
            replicas[name] = Replica(f"{pool}:m", "n", "llm-a")
        canary = exporter.Engine("c", counters={"request_success": count})
        canary.seen = {"request_time_per_output_token_seconds": [2.0] * count}
        replicas["c"] = Replica("Decode:m", "n", "llm-b")
        return Snapshot(float(self.reads), {"n": pages + canary.text()}, replicas)


def test_it_reads_decides_and_applies() -> None:
    made: list[Ratio] = []
    said: list[str] = []
    ratio = automatic(Cluster(), LIVE, POLICY, made.append, say=said.append, seconds=0.01, rounds=2)
    assert made == [Ratio(3, 1)]
    assert ratio == Ratio(3, 1)
    assert "1 of 2 windows" in said[0]
    assert "2P2D to 3P1D" in said[1]


def test_a_dry_run_only_says_it() -> None:
    said: list[str] = []
    cluster = Cluster()
    made: list[Ratio] = []
    automatic(cluster, LIVE, POLICY, made.append, say=said.append, seconds=0.01, rounds=2, dry_run=True)
    assert made == []
    assert "dry run: 2P2D to 3P1D" in said[-1]


def test_a_cluster_that_cannot_be_read_changes_nothing() -> None:
    cluster = Cluster()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        cluster.down = True

    automatic(cluster, LIVE, POLICY, lambda _: pytest.fail("applied"), say=say, seconds=0.01, rounds=3)
    assert "incomplete: the cluster: no host could be reached" in said[-1]


def test_aggregated_engines_have_no_ratio() -> None:
    with pytest.raises(NoRatio, match="llm-a has 2 aggregated"):
        ratio_of({"name": "llm-a", "ratio": {"aggregated": 2}})


@pytest.mark.parametrize("arguments", [[], ["--auto"], ["--auto", "--to", "2P2D"]])
def test_what_was_asked_must_be_clear(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["rebalance", *arguments])
    assert done.exit_code == 2
    assert "--auto --policy FILE" in done.output


def test_a_policy_that_is_none_is_named(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yml"
    policy.write_text("sla: [nonsense]\n")
    done = CliRunner().invoke(app, ["rebalance", "--auto", "--policy", str(policy)])
    assert done.exit_code == 2
    assert "policy.yml" in done.output.replace("\n", "")
