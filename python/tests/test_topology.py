"""Topologies that can be served, and every reason why one cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from splitrail.topology import RESERVED_ENGINE_KEYS, TopologyError, parse
from splitrail.topology.schema import MUST_MATCH

Raw = dict[str, Any]


@pytest.fixture
def raw() -> Raw:
    """The smallest topology that serves prefill and decode."""
    return {
        "name": "small",
        "mode": "pd",
        "model": {"id": "m", "source": "/models/m"},
        "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 2}},
    }


def changed(raw: Raw, place: str, value: Any) -> Raw:
    """A copy with the key at a dotted place set."""
    copied = copy.deepcopy(raw)
    *folders, last = place.split(".")
    at = copied
    for folder in folders:
        at = at.setdefault(folder, {})
    at[last] = value
    return copied


def test_defaults_are_written_out(raw: Raw) -> None:
    topology = parse(raw)
    assert topology.pools.decode is not None
    assert (topology.pools.decode.replicas, topology.pools.decode.tensor_parallel_size) == (2, 1)
    assert topology.kv_transfer.connector == "NixlConnector"
    assert topology.ingress.replicas == 1


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("modell", {}, "modell is not a key of a topology, do you mean model?"),
        ("pools.prefil", {}, "pools.prefil is not a key of a topology, do you mean prefill?"),
        ("pools.decode.replica", 1, "pools.decode.replica is not a key of a topology, do you mean replicas?"),
        ("zzz", 1, "zzz is not a key of a topology"),
        ("name", "Small One", "name: String should match pattern"),
        ("mode", "both", "mode: Input should be 'pd', 'aggregated' or 'elastic'"),
        ("model.id", "", "model.id: String should have at least 1 character"),
        ("pools.decode.replicas", 0, "pools.decode.replicas: Input should be greater than or equal to 1"),
        ("pools.decode.env", {"N": 1}, "pools.decode.env.N: Input should be a valid string; quote it"),
        ("kv_transfer.connector", "Other", "kv_transfer.connector: Input should be 'NixlConnector', "),
        ("kv_transfer.buffer_device", "rocm", "kv_transfer.buffer_device: Input should be 'cuda' or 'cpu'"),
        ("kv_transfer.role", "kv_producer", "kv_transfer.role: Input should be 'kv_both' or 'split'"),
        ("kv_transfer.extra", {"kv_role": "x"}, "kv_transfer.extra.kv_role: write it as kv_transfer.role"),
        ("kv_transfer.extra", {"engine_id": "x"}, "engine_id: Ray gives each replica its own"),
        ("model.facts", {"hiddensize": 1}, "hiddensize is not a key of a topology, do you mean hidden_size?"),
        ("pools", {}, "mode pd needs pools.prefill and pools.decode"),
        ("pools.decode", None, "mode pd needs pools.decode"),
        ("pools.prefill.tensor_parallel_size", 2, "decode.tensor_parallel_size 1 is no multiple of"),
    ],
)  # fmt: skip
def test_each_fault_is_named(raw: Raw, place: str, value: Any, says: str) -> None:
    with pytest.raises(TopologyError) as error:
        parse(changed(raw, place, value))
    assert str(error.value).startswith(f"topology {'Small One' if place == 'name' else 'small'}: ")
    assert says in str(error.value)


def test_decode_ranks_must_share_prefill_ranks_evenly(raw: Raw) -> None:
    uneven = changed(raw, "pools.prefill.tensor_parallel_size", 2)
    parse(changed(uneven, "pools.decode.tensor_parallel_size", 4))
    with pytest.raises(TopologyError, match="tensor_parallel_size 3 is no multiple"):
        parse(changed(uneven, "pools.decode.tensor_parallel_size", 3))


@pytest.mark.parametrize("key", MUST_MATCH)
def test_the_kv_cache_is_of_one_type(raw: Raw, key: str) -> None:
    parse(changed(changed(raw, f"engine.{key}", "fp8"), f"pools.decode.engine.{key}", "fp8"))
    with pytest.raises(TopologyError, match=f"{key} is None for prefill and 'fp8' for decode"):
        parse(changed(raw, f"pools.decode.engine.{key}", "fp8"))


@pytest.mark.parametrize("place", ["engine", "pools.prefill.engine", "pools.aggregated"])
@pytest.mark.parametrize("key", RESERVED_ENGINE_KEYS)
def test_what_the_suite_says_itself_is_refused(raw: Raw, place: str, key: str) -> None:
    place = "pools.aggregated.engine" if place == "pools.aggregated" else place
    wrong = changed(changed(raw, "pools.aggregated", {"replicas": 1}), f"{place}.{key}", 1)
    with pytest.raises(TopologyError) as error:
        parse(wrong)
    assert f"{place}.{key}: {RESERVED_ENGINE_KEYS[key]}" in str(error.value)


def test_names_of_one_type_are_equal(raw: Raw) -> None:
    parse(
        changed(
            changed(raw, "engine.kv_cache_dtype", "fp8"), "pools.decode.engine.kv_cache_dtype", "fp8_e4m3"
        )
    )


def test_moriio_wants_split_roles(raw: Raw) -> None:
    moriio = changed(raw, "kv_transfer.connector", "MoRIIOConnector")
    parse(changed(moriio, "kv_transfer.role", "split"))
    with pytest.raises(TopologyError, match="MoRIIO tells a producer from a consumer by its role alone"):
        parse(moriio)


def test_all_faults_are_named_at_once(raw: Raw) -> None:
    wrong = changed(changed(raw, "engine.model", "m"), "pools.prefill.tensor_parallel_size", 2)
    with pytest.raises(TopologyError, match=r"engine\.model.*; .*no multiple"):
        parse(wrong)


def test_a_mode_can_be_chosen_over_the_topology_s_own(raw: Raw) -> None:
    with pytest.raises(TopologyError, match=r"mode aggregated needs pools\.aggregated"):
        parse(raw, mode="aggregated")
    both = changed(raw, "pools.aggregated", {"replicas": 3})
    assert parse(both, mode="aggregated").mode == "aggregated"
    assert parse(both).mode == "pd"


def test_aggregated_engines_hand_nothing_over(raw: Raw) -> None:
    both = changed(changed(raw, "pools.aggregated", {"replicas": 1}), "pools.decode.engine.dtype", "float16")
    parse(both, mode="aggregated")
    with pytest.raises(TopologyError, match="dtype"):
        parse(both)


@pytest.mark.parametrize("raw_text", [None, [], "pd", 3])
def test_only_a_mapping_is_a_topology(raw_text: object) -> None:
    with pytest.raises(TopologyError, match=f"a topology is a mapping, got {type(raw_text).__name__}"):
        parse(raw_text)


def test_a_topology_without_a_name_is_told_apart(raw: Raw) -> None:
    del raw["name"]
    with pytest.raises(TopologyError, match="topology without a name: name: Field required"):
        parse(raw)


@pytest.fixture
def elastic() -> Raw:
    """The smallest topology whose engines change their roles."""
    return {
        "name": "small",
        "mode": "elastic",
        "model": {"id": "m", "source": "/models/m"},
        "pools": {"elastic": {"replicas": 3}},
        "ratio": {"prefill": 1, "decode": 2},
    }


def test_elastic_engines_begin_with_a_ratio_or_with_none(elastic: Raw) -> None:
    assert parse(elastic).served["elastic"].replicas == 3
    assert parse(changed(elastic, "ratio", "aggregated")).ratio == "aggregated"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("ratio", None, "pools.elastic needs ratio: {prefill: P, decode: D}, or aggregated"),
        ("ratio.decode", 1, "ratio has 1 prefill and 1 decode, pools.elastic.replicas is 3"),
        ("ratio.prefill", 0, "ratio.Ratio.prefill: Input should be greater than or equal to 1"),
        ("ratio", "split", "Input should be 'aggregated'"),
        ("pools.elastic.data_parallel_size", 2, "pools.elastic.data_parallel_size 2: .* write replicas"),
        ("kv_transfer.role", "split", "kv_transfer.role split: an elastic engine has both roles"),
        ("kv_transfer.connector", "NixlPushConnector", "connector NixlPushConnector: .* write NixlConnector"),
        (
            "pools",
            {"prefill": {"replicas": 1}, "decode": {"replicas": 2}},
            "mode elastic needs pools.elastic",
        ),
        ("aggregated_below_osl", -1, "aggregated_below_osl: Input should be greater than or equal to 0"),
    ],
)
def test_engines_that_cannot_change_their_roles_are_refused(
    elastic: Raw, place: str, value: Any, says: str
) -> None:
    with pytest.raises(TopologyError, match=says):
        parse(changed(elastic, place, value))


@pytest.mark.parametrize("pool", ["prefill", "decode", "aggregated"])
def test_a_spare_engine_that_serve_would_use_is_refused(raw: Raw, pool: str) -> None:
    pools = {**raw["pools"], pool: {"replicas": 1, "spare": 1}}
    with pytest.raises(
        TopologyError, match=f"pools.{pool}.spare 1: .* raise replicas, or serve in mode elastic"
    ):
        parse(raw | {"pools": pools})


def test_a_ratio_without_elastic_engines_is_refused(raw: Raw) -> None:
    with pytest.raises(TopologyError, match="ratio: engines change their roles in mode elastic alone"):
        parse(raw | {"ratio": {"prefill": 1, "decode": 2}})
