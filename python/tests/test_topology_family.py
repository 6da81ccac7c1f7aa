"""Topologies by name: files, and families with a ratio."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.topology import TopologyError, load, names, parse

SHIPPED = Path(__file__).parents[2] / "inventories/topologies"
FAMILY = """
ratios: [1p1d, 2agg]
variants:
  nocache: {engine: {enable_prefix_caching: false}}
model: {id: m, source: /m}
engine: {enable_prefix_caching: true, max_model_len: 8}
pools:
  prefill: {tensor_parallel_size: 2}
  decode: {tensor_parallel_size: 4}
  aggregated: {tensor_parallel_size: 2}
ingress_per_engine: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "big.yml").write_text(FAMILY)
    (tmp_path / "one.yml").write_text("name: one\nmode: aggregated\n")
    return tmp_path


def test_a_ratio_is_prefill_and_decode_engines(folder: Path) -> None:
    topology = parse(load("big-3p2d", folder))
    assert (topology.name, topology.mode) == ("big-3p2d", "pd")
    assert {name: pool.replicas for name, pool in topology.served.items()} == {"prefill": 3, "decode": 2}
    assert topology.ingress.replicas == 20


def test_the_same_gpus_may_serve_aggregated(folder: Path) -> None:
    topology = parse(load("big-3p2d", folder), mode="aggregated")
    assert topology.served["aggregated"].replicas == (3 * 2 + 2 * 4) // 2


def test_aggregated_engines_are_counted(folder: Path) -> None:
    raw = load("big-5agg", folder)
    assert list(raw["pools"]) == ["aggregated"]
    topology = parse(raw)
    assert (topology.mode, topology.served["aggregated"].replicas, topology.ingress.replicas) == (
        "aggregated",
        5,
        20,
    )


def test_the_ratio_of_elastic_engines_is_the_one_to_begin_with(folder: Path) -> None:
    (folder / "any.yml").write_text(FAMILY.replace("aggregated:", "elastic:"))
    topology = parse(load("any-1p3d", folder))
    assert (topology.mode, topology.served["elastic"].replicas) == ("elastic", 4)
    assert topology.ratio is not None
    assert load("any-1p3d", folder)["ratio"] == {"prefill": 1, "decode": 3}
    assert load("any-2agg", folder)["ratio"] == "aggregated"


def test_a_variant_is_laid_over_the_family(folder: Path) -> None:
    assert load("big-1p1d", folder)["engine"]["enable_prefix_caching"] is True
    assert load("big-1p1d-nocache", folder)["engine"] == {"enable_prefix_caching": False, "max_model_len": 8}


def test_a_family_lists_what_it_is_known_to_serve(folder: Path) -> None:
    assert names(folder) == ["big-1p1d", "big-1p1d-nocache", "big-2agg", "big-2agg-nocache", "one"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("big-1p1", "no topology big-1p1 in .*, do you mean big-1p1d?"),
        ("big-0p1d", "no topology big-0p1d"),
        ("bigger-1p1d", "no topology bigger-1p1d in .*, do you mean big-1p1d?"),
        ("xyz", "there are big-1p1d, big-1p1d-nocache, big-2agg, big-2agg-nocache, one"),
        ("big-1p1d-fast", "the family has no variant fast: it has nocache"),
        ("big", "big is a family: add a ratio, such as big-1p1d"),
        ("../one-1p1d", "no topology"),
    ],
)
def test_a_name_that_is_none_is_explained(folder: Path, name: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        load(name, folder)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"])
def test_a_file_that_is_no_mapping_is_named(folder: Path, text: str) -> None:
    (folder / "bad.yml").write_text(text)
    with pytest.raises(TopologyError, match=r"bad\.yml: "):
        load("bad", folder)


def test_what_is_shipped() -> None:
    expected = {f"qwen3-235b-{p}p{d}d" for p, d in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]}
    expected |= {f"qwen3-235b-{engines}agg" for engines in (2, 3, 4)}
    expected |= {f"{name}-nocache" for name in expected}
    expected |= {"deepseek-v3-1p1d", "deepseek-v3-2agg", "lab-1p1d"}
    expected |= {f"qwen3-14b-{ratio}" for ratio in ("1p3d", "2p2d", "3p1d", "4agg")}
    assert expected <= set(names(SHIPPED))
