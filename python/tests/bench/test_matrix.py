"""The matrix: what is refused, what is remembered, and what a cluster must have proven."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from splitrail.bench import cluster
from splitrail.bench.matrix import Cell, Matrix, Plan, Served, State, cells, load_plan
from splitrail.bench.measured import Measured
from splitrail.bench.queues import Queue
from splitrail.bench.search import Measure
from splitrail.bench.workloads import drawn
from splitrail.project import Project
from splitrail.proof import Proof
from splitrail.workload import Layout, Lengths, Window, Workload, WorkloadError, load_curves

ROOT = Path(__file__).parents[3]
LOADS = [drawn(Workload(isl=Lengths(mean=isl), osl=Lengths(mean=8)), f"w{isl}") for isl in (100, 200)]
PLAN = Plan.model_validate(
    {
        "about": "two queues",
        "topologies": [{"topology": "x-2agg"}, {"topology": "x-1p1d"}],
        "workloads": ["w100", "w200"],
        "sla": ["e2e_p90=6000"],
        "near": 0.5,
        "budget": {"requests": 400, "repeats": 2, "seconds": 1e6, "tolerance": 0.1},
    }
)
LAYOUTS = [Layout.read("2agg"), Layout.read("1p1d")]


class Interrupted(Exception):
    """As by Ctrl-C."""


class World:
    """Queues in place of clusters, which counts what is asked of it and may break off."""

    def __init__(self, folder: Path, fail_after: int | None = None) -> None:
        self.deploys: list[str] = []
        self.lines: list[str] = []
        self.asked = 0
        self.fail_after = fail_after
        self.state = State.open(folder, PLAN)

    def measure(self, cell: Cell) -> Measure:
        queue = Queue(mean_s=1.0 if cell.layout.mode == "pd" else 1.5)

        def ask(qps: float, window: Window, seconds: float, seed: int) -> Measured:
            if self.fail_after is not None and self.asked >= self.fail_after:
                raise Interrupted
            self.asked += 1
            return queue(qps, window, seconds, seed)

        return ask

    def matrix(self) -> Matrix:
        return Matrix(
            PLAN,
            cells(PLAN, LAYOUTS, LOADS),
            self.state,
            lambda served: self.deploys.append(served.topology),
            self.measure,
            self.lines.append,
            "test",
        )


def test_every_cell_is_searched_and_each_topology_deployed_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    found = world.matrix().run()
    assert world.deploys == ["x-2agg", "x-1p1d"]
    assert [(curve.layout, curve.workload.isl.mean) for curve in found.curves] == [
        ("2agg", 100),
        ("2agg", 200),
        ("1p1d", 100),
        ("1p1d", 200),
    ]
    agg, split = (found.curves[index].sustained[0].qps or 0 for index in (0, 2))
    assert 0 < agg < split
    assert load_curves(tmp_path / "curves.json") == found
    assert any("known after the first" in line for line in world.lines)
    assert any("min left, by 3 so far" in line for line in world.lines)


def test_interrupted_it_goes_on_where_it_was_and_ends_alike(tmp_path: Path) -> None:
    whole = World(tmp_path / "whole").matrix().run()
    asked = World(tmp_path / "count")
    asked.matrix().run()
    first = World(tmp_path / "two", fail_after=asked.asked - 3)
    with pytest.raises(Interrupted):
        first.matrix().run()
    # A run that was being written when the machine went down.
    with (tmp_path / "two/runs.jsonl").open("a") as stream:
        stream.write('{"key": "half')
    second = World(tmp_path / "two")
    again = second.matrix().run()
    assert second.asked == 3
    assert second.deploys == ["x-1p1d"]
    assert [curve.points for curve in again.curves] == [curve.points for curve in whole.curves]
    third = World(tmp_path / "two")
    third.matrix().run()
    assert (third.asked, third.deploys) == (0, [])


def test_the_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    State.open(tmp_path, PLAN)
    with pytest.raises(WorkloadError, match="another plan"):
        State.open(tmp_path, PLAN.model_copy(update={"near": 1.0}))


def test_layouts_of_different_gpus_are_refused() -> None:
    uneven = [Layout.read("4agg"), Layout.read("1p1d")]
    with pytest.raises(WorkloadError, match="4agg on 4, 1p1d on 2"):
        cells(PLAN, uneven, LOADS)
    assert cells(PLAN.model_copy(update={"unequal_gpus": True}), uneven, LOADS)


def test_a_plan_is_read_and_its_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "m.yml"
    path.write_text("topologies: [a-2agg, {topology: b, mode: aggregated}]\nworkloads: [chat]\n")
    assert load_plan(path).topologies == (Served(topology="a-2agg"), Served(topology="b", mode="aggregated"))
    path.write_text("topologies: [a]\nworkloads: [chat]\nbudgets: {}\n")
    with pytest.raises(WorkloadError, match="budgets"):
        load_plan(path)


@pytest.mark.parametrize(
    ("name", "mode", "label"),
    [
        ("lab-1p1d", None, "1p1d"),
        ("lab-1p1d", "aggregated", "1agg"),
        ("qwen3-14b-2p2d", None, "2p2d"),
        ("qwen3-235b-1p3d", None, "1p3d-tp8"),
    ],
)
def test_layouts_of_shipped_topologies(name: str, mode: str | None, label: str) -> None:
    assert cluster.layout(name, ROOT / "inventories/topologies", mode).label == label


def test_an_unknown_topology_is_named() -> None:
    with pytest.raises(WorkloadError, match="lab-1p1"):
        cluster.layout("lab-1p1x", ROOT / "inventories/topologies")


LISTED: dict[str, Any] = {
    "head": {"hosts": ["h"]},
    "_meta": {"hostvars": {"h": {"cluster_name": "c", "topology_name": "t", "rdma_fabric_transport": "tcp"}}},
}


def test_an_inventory_says_its_cluster() -> None:
    assert cluster.of(LISTED, "inv") == cluster.Cluster("c", "t", "tcp")
    with pytest.raises(WorkloadError, match="group head"):
        cluster.of({"_meta": {"hostvars": {}}}, "inv")
    with pytest.raises(WorkloadError, match="no topology_name"):
        cluster.of({**LISTED, "_meta": {"hostvars": {"h": {"cluster_name": "c"}}}}, "inv")


def proof(project: Project, verb: str, **more: Any) -> None:
    found = {"verb": verb, "cluster": "c", "transport": "rdma", "at": datetime.now(UTC), "ok": True, **more}
    Proof.model_validate(found).save(project.runs / f"run-{verb}")


def test_nothing_is_measured_over_a_fabric_that_nobody_proved(tmp_path: Path) -> None:
    project, known = Project(tmp_path), cluster.Cluster("c", "t", "rdma")
    with pytest.raises(WorkloadError, match="no fabric proof of c"):
        cluster.refuse_unproven(project, known)
    proof(project, "fabric")
    with pytest.raises(WorkloadError, match="no validate proof of c"):
        cluster.refuse_unproven(project, known)
    proof(project, "validate")
    cluster.refuse_unproven(project, known)
    with pytest.raises(WorkloadError, match=r"25 h old"):
        cluster.refuse_unproven(project, known, datetime.now(UTC) + timedelta(hours=25))
    proof(project, "fabric", ok=False, problems=["h2: link down"])
    with pytest.raises(WorkloadError, match="h2: link down"):
        cluster.refuse_unproven(project, known)
    # Over TCP, openly, the fabric's proof is enough.
    proof(project, "fabric", transport="tcp")
    cluster.refuse_unproven(project, cluster.Cluster("c", "t", "tcp"))


def test_what_is_kept_can_be_read(tmp_path: Path) -> None:
    World(tmp_path).matrix().run()
    line = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])
    assert {"key", "cell", "qps", "window", "seed", "rows"} <= set(line)
