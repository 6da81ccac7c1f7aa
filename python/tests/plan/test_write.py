"""What `--write` leaves can be served: topology.parse reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from splitrail.plan.write import ratio, write
from splitrail.topology import parse
from splitrail.workload import Layout, WorkloadError

TOPOLOGIES = Path(__file__).parents[3] / "inventories/topologies"


@pytest.mark.parametrize(
    ("base", "label"), [("qwen3-235b", "2p1d-tp8"), ("qwen3-235b", "3agg-tp8"), ("lab-1p1d", "2p3d")]
)
def test_a_family_or_a_file_becomes_a_topology(tmp_path: Path, base: str, label: str) -> None:
    layout, out = Layout.read(label), tmp_path / "planned.yml"
    write(out, layout, TOPOLOGIES / f"{base}.yml", "because\nof this")
    text = out.read_text(encoding="utf-8")
    read = parse(yaml.safe_load(text))
    assert read.mode == layout.mode
    for role, engines in layout.pools.items():
        pool = getattr(read.pools, role)
        assert (pool.replicas, pool.tensor_parallel_size) == (engines.replicas, engines.tp)
    assert "because of this" in text.splitlines()[1]
    assert read.model == parse(yaml.safe_load(text)).model
    assert read.name.endswith("-planned")


def test_a_ratio_has_the_replicas_alone() -> None:
    assert ratio(Layout.read("2p-tp4-1d-tp8")) == "2p1d"
    assert ratio(Layout.read("4agg-tp8")) == "4agg"


def test_what_could_not_be_served_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "planned.yml"
    with pytest.raises(WorkloadError, match="tensor_parallel_size 4 is no multiple"):
        write(out, Layout.read("1p-tp8-1d-tp4"), TOPOLOGIES / "lab-1p1d.yml", "")
    with pytest.raises(WorkloadError, match=r"gone\.yml"):
        write(out, Layout.read("1p1d"), TOPOLOGIES / "gone.yml", "")
    assert not out.exists()
