"""What a topology becomes on a release and cluster: layout, memory, a benchmark's overlay, the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from splitrail.topology import Site, Topology, TopologyError, load, names, parse, serving
from splitrail.topology.app import app_config
from splitrail.topology.kv_layout import choose, layouts
from splitrail.topology.memory import GB, GPU_BYTES, default_utilization, fit
from splitrail.topology.models import Facts, facts_of
from splitrail.topology.schema import Pool

ROOT = Path(__file__).parents[2]
TOPOLOGIES = ROOT / "inventories/topologies"
TEMPLATE = ROOT / "templates/serve/app.yaml.j2"
RELEASES = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "inventories/releases").glob("*.yml")
}
# What a release can serve; `fabric` is for proving fabrics.
SERVING = {name: release for name, release in RELEASES.items() if "vllm" in release}
SHIPPED = [
    (name, release)
    for name in names(TOPOLOGIES)
    for release, pins in SERVING.items()
    if load(name, TOPOLOGIES).get("platform", "cpu") == pins["platform"]
]
Json = dict[str, Any]


def site(release: str, **more: Any) -> Site:
    pins = SERVING[release]
    env = {key: value for key, value in pins.get("env", {}).items() if not key.startswith("UCX_")}
    return Site(release=pins, transport="rdma" if pins["platform"] == "mi325x" else "tcp", env=env, **more)


def rendered(name: str, release: str, **more: Any) -> tuple[Json, str]:
    """The application of a shipped topology, and the whole text."""
    where = site(release, **more)
    text = app_config(TEMPLATE, serving(load(name, TOPOLOGIES), where), where)
    application: Json = yaml.safe_load(text)["applications"][0]
    return application, text


def llm_configs(application: Json) -> dict[str, Json]:
    arguments = application["args"]
    if "llm_configs" in arguments:
        return {"aggregated": arguments["llm_configs"][0]}
    if "llm_config" in arguments:
        return {"elastic": arguments["llm_config"]}
    return {pool: arguments[f"{pool}_config"] for pool in ("prefill", "decode")}


# Every shipped topology, on each release of its platform.


@pytest.mark.parametrize(("name", "release"), SHIPPED)
def test_it_renders_what_its_name_says(name: str, release: str) -> None:
    application, _ = rendered(name, release)
    configs = llm_configs(application)
    counts = {pool: config["deployment_config"]["num_replicas"] for pool, config in configs.items()}
    said = next(part for part in name.split("-") if part[0].isdigit() and part[-1] in "dg")
    if "elastic" in counts:
        (override,) = application["deployments"]
        roles = override["user_config"]
        assert override["name"] == "ElasticIngress"
        engines = counts["elastic"] - roles.get("spare", 0)
        assert roles.get("spare", 0) == name.endswith("-spare")
        assert sum(roles[role] for role in ("prefill", "decode")) in (0, engines)
        counts = {"aggregated": engines} if not roles["prefill"] else roles
    assert said == (
        f"{counts['aggregated']}agg" if "aggregated" in counts else f"{counts['prefill']}p{counts['decode']}d"
    )
    for config in configs.values():
        arguments = config["engine_kwargs"]
        assert len(config["placement_group_config"]["bundles"]) == arguments["tensor_parallel_size"]
        assert ("kv_transfer_config" in arguments) is (list(configs) != ["aggregated"])
        assert arguments.get("enable_prefix_caching", True) is not name.endswith("-nocache")


@pytest.mark.parametrize(("name", "release"), SHIPPED)
def test_production_has_weights_and_a_benchmark_has_none(name: str, release: str) -> None:
    application, text = rendered(name, release)
    assert application["name"] == "llm-a"
    assert "dummy" not in text
    assert "SIMULATION" not in text
    bench, text = rendered(name, release, bench=True)
    assert bench["name"] == "llm-bench-a"
    assert "# BENCHMARK: random weights" in text
    for config in llm_configs(bench).values():
        assert config["engine_kwargs"]["load_format"] == "dummy"
        routing = config["runtime_env"]["env_vars"].get("VLLM_MOE_ROUTING_SIMULATION_STRATEGY")
        assert routing == (
            "uniform_random" if config["engine_kwargs"].get("enable_expert_parallel") else None
        )


def test_it_is_what_ansible_renders() -> None:
    """The reference cluster's reviewed file, but for what the cluster adds."""
    golden = Path(__file__).parent / "golden/mi325x/mi325x-1/etc/splitrail/serve/app.yaml"
    reviewed = llm_configs(yaml.safe_load(golden.read_text())["applications"][0])
    made = llm_configs(rendered("qwen3-235b-1p3d", "mi325x-rocm7.0")[0])
    for pool, config in reviewed.items():
        for key in ("engine_kwargs", "experimental_configs", "deployment_config", "runtime_env"):
            assert made[pool][key] == config[key], f"{pool}: run `make golden` and review the difference"


def test_prefill_and_decode_have_side_channels_apart() -> None:
    configs = llm_configs(rendered("qwen3-14b-2p2d", "h200")[0])
    ports = {
        pool: config["experimental_configs"]["NIXL_SIDE_CHANNEL_PORT_BASE"]
        for pool, config in configs.items()
    }
    assert ports == {"prefill": 20000, "decode": 22000}


def test_data_parallel_engines_reserve_a_rank_a_replica() -> None:
    raw = load("deepseek-v3-1p1d", TOPOLOGIES)
    raw["pools"]["decode"] |= {"tensor_parallel_size": 8, "data_parallel_size": 2}
    where = site("mi325x-rocm7.0", nodes={f"n{number}": {"GPU": 8} for number in range(3)})
    text = app_config(TEMPLATE, serving(raw, where), where)
    decode = yaml.safe_load(text)["applications"][0]["args"]["decode_config"]
    assert decode["engine_kwargs"]["data_parallel_size"] == 2
    assert len(decode["placement_group_config"]["bundles"]) == 8


def test_what_a_node_offers_is_a_number() -> None:
    nodes: Any = {"n1": {"GPU": "4"}}
    with pytest.raises(TopologyError, match=r"llm_serve_nodes\.n1\.GPU is '4': write a number"):
        serving(load("qwen3-14b-4agg", TOPOLOGIES), site("h200", nodes=nodes))


def test_split_roles_are_rendered() -> None:
    raw = load("qwen3-14b-2p2d", TOPOLOGIES) | {"kv_transfer": {"role": "split"}}
    pools = serving(raw, site("h200"))["pools"]
    assert {name: pool["kv_role"] for name, pool in pools.items()} == {
        "prefill": "kv_producer",
        "decode": "kv_consumer",
    }


def test_what_the_release_wants_of_every_engine_is_there() -> None:
    raw = load("lab-1p1d", TOPOLOGIES)
    del raw["engine"]["dtype"]
    assert serving(raw, site("cpu"))["pools"]["decode"]["engine"]["dtype"] == "float32"


# The KV cache's layout.


@pytest.mark.parametrize("release", SERVING)
def test_each_release_has_a_layout_of_its_own_vllm(release: str) -> None:
    assert layouts()[release].vllm == SERVING[release]["vllm"].partition("+")[0], (
        f"kv_layouts.yml was read from another vLLM than {release} pins: read it anew"
    )


@pytest.mark.parametrize(("name", "release"), SHIPPED)
def test_the_reason_stands_beside_the_choice(name: str, release: str) -> None:
    application, text = rendered(name, release)
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    entry = layouts()[release]
    model = facts_of(load(name, TOPOLOGIES)["model"]["source"])
    pd = "-agg" not in name and "llm_configs" not in application["args"]
    for choice in getattr(entry, model.attention if model else "gqa"):
        assert (" ".join(choice.why.split()) in " ".join(comments.split())) is (pd or not choice.pd)


def test_a_topology_s_own_choice_is_taken_and_noted() -> None:
    raw = load("qwen3-235b-1p3d", TOPOLOGIES)
    raw["engine"] |= {"block_size": 128, "attention_backend": "ROCM_AITER_UNIFIED_ATTN"}
    served = serving(raw, site("mi325x-rocm7.0"))
    assert served["pools"]["decode"]["engine"]["block_size"] == 128
    assert any(
        note.startswith("block_size 128: the topology's own, the table says 32") for note in served["notes"]
    )


def test_on_h200_all_layers_of_a_block_move_at_once() -> None:
    configs = llm_configs(rendered("qwen3-14b-1p3d", "h200")[0])
    for config in configs.values():
        arguments = config["engine_kwargs"]
        assert arguments["block_size"] == 128
        extra = arguments["kv_transfer_config"]["kv_connector_extra_config"]
        assert extra == {"enable_cross_layers_blocks": "True"}
        # Of 0.26.0's two model runners one ignores it.
        assert config["runtime_env"]["env_vars"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_a_variable_is_for_engines_that_move_kv_caches_and_a_pool_s_own_is_taken() -> None:
    (alone,) = llm_configs(rendered("qwen3-14b-4agg", "h200")[0]).values()
    assert "VLLM_USE_V2_MODEL_RUNNER" not in alone["runtime_env"]["env_vars"]
    raw = load("qwen3-14b-1p1d", TOPOLOGIES)
    raw["pools"]["decode"]["env"] = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    served = serving(raw, site("h200"))
    assert served["pools"]["decode"]["env"]["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    assert served["pools"]["prefill"]["env"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert any(note.startswith("VLLM_USE_V2_MODEL_RUNNER 1: the topology's own") for note in served["notes"])


def test_a_release_without_a_layout_leaves_it_to_vllm(pd: Topology) -> None:
    chosen, notes = choose(pd, "another", "gqa")
    assert chosen == pd
    assert notes == ["KV layout: vLLM's own; kv_layouts.yml has no release another"]


@pytest.fixture
def pd() -> Topology:
    return parse(load("qwen3-235b-1p3d", TOPOLOGIES))


# Models and memory.


def known(name: str) -> Facts:
    facts = facts_of(name)
    assert facts is not None
    return facts


@pytest.mark.parametrize(
    ("name", "weights", "kv_fp8"),
    [
        # Checkpoint of 236 GB, and 2 x 94 layers x 4 heads x 128.
        ("Qwen/Qwen3-235B-A22B-FP8", 236, 96_256),
        # 671 billion weights, of which embedding and head have two bytes; 61 layers x 576.
        ("deepseek-ai/DeepSeek-V3-0324", 673, 35_136),
        # 14.8 billion weights of two bytes; 2 x 40 layers x 8 heads x 128.
        ("/srv/models/Qwen3-14B/", 29.5, 81_920),
    ],
)
def test_shapes_give_the_published_sizes(name: str, weights: float, kv_fp8: int) -> None:
    facts = known(name)
    assert (facts.expert_bytes() + facts.other_bytes()) / GB == pytest.approx(weights, rel=0.005)
    assert facts.kv_bytes_per_token(1, 1) == kv_fp8


def test_kv_heads_are_spread_and_then_repeated() -> None:
    qwen, deepseek = known("qwen3-235b-a22b-fp8"), known("deepseek-v3")
    assert [qwen.kv_bytes_per_token(size, 1) * size for size in (1, 2, 4, 8)] == [96_256] * 3 + [192_512]
    assert deepseek.kv_bytes_per_token(8, 1) == deepseek.kv_bytes_per_token(1, 1)


@pytest.mark.parametrize(("size", "says"), [(8, []), (3, ["64 attention heads"]), (64, [])])
def test_heads_divide(size: int, says: list[str]) -> None:
    found = list(known("qwen3-235b-a22b-fp8").tensor_parallel_faults(size))
    assert [fault[: len(said)] for fault, said in zip(found, says, strict=True)] == says


def test_kv_heads_neither_spread_nor_repeated() -> None:
    facts = known("qwen3-14b").model_copy(update={"num_attention_heads": 48})
    assert list(facts.tensor_parallel_faults(12)) == [
        "8 KV heads can neither be spread nor repeated evenly over 12 ranks"
    ]


def test_memory_is_of_a_rank() -> None:
    facts = known("qwen3-235b-a22b-fp8")
    engine = {"enable_expert_parallel": True, "kv_cache_dtype": "fp8", "max_model_len": 40960}
    one = fit(facts, Pool(replicas=1, tensor_parallel_size=8, engine=engine), GPU_BYTES["mi325x"], 0.9)
    assert one.weights / GB == pytest.approx(236.3 / 8, rel=0.01)
    assert one.kv_request == 40960 * 94 * 2 * 128
    assert one.usable == 230_400_000_000
    assert one.needed < one.usable
    # Experts spread over all ranks of an engine, the rest over the tensor-parallel ones.
    two = Pool(replicas=1, tensor_parallel_size=8, data_parallel_size=2, engine=engine)
    assert fit(facts, two, GPU_BYTES["mi325x"], 0.9).weights == (
        facts.other_bytes() // 8 + facts.expert_bytes() // 16
    )
    plain = {**engine, "kv_cache_dtype": "auto", "enforce_eager": True}
    other = fit(facts, Pool(replicas=1, tensor_parallel_size=8, engine=plain), GPU_BYTES["mi325x"], 0.9)
    assert other.kv_request == 2 * one.kv_request
    assert other.runtime < one.runtime


def test_a_topology_brings_the_shape_of_its_own_model() -> None:
    raw = load("qwen3-14b-4agg", TOPOLOGIES)
    raw["model"] = {"id": "mine", "source": "/srv/models/mine", "facts": known("qwen3-14b").model_dump()}
    assert "weights 29.5" in serving(raw, site("h200"))["notes"][-1]


@pytest.mark.parametrize(
    ("vllm", "part"), [("0.18.0+rocm700", 0.9), ("0.26.0", 0.92), ("0.29.0+rocm723", 0.92)]
)
def test_the_part_of_a_gpu_that_vllm_takes(vllm: str, part: float) -> None:
    assert default_utilization(vllm) == part


# Elastic engines.


def test_what_may_change_while_it_serves_is_not_among_the_arguments() -> None:
    """Another ratio with the same engines: Serve restarts what has other arguments."""
    one, other = (rendered(f"lab-elastic-{ratio}", "cpu")[0] for ratio in ("1p2d", "2p1d"))
    assert one["args"] == other["args"]
    assert [app["deployments"][0]["user_config"] for app in (one, other)] == [
        {"prefill": 1, "decode": 2, "aggregated_below_osl": 0},
        {"prefill": 2, "decode": 1, "aggregated_below_osl": 0},
    ]


def test_a_spare_engine_is_one_more_and_must_fit() -> None:
    raw, room = load("lab-elastic-1p2d-spare", TOPOLOGIES), {"one": {"GPU": 4}}
    served = serving(raw, site("cpu", nodes=room))
    assert served["roles"] == {"prefill": 1, "decode": 2, "aggregated_below_osl": 0, "spare": 1}
    with pytest.raises(TopologyError, match=r"4 times 1 GPU .* room for 3; lower replicas or spare"):
        serving(raw, site("cpu", nodes={"one": {"GPU": 3}}))


def test_short_answers_may_stay_where_their_prompt_is() -> None:
    raw = load("lab-elastic-3agg", TOPOLOGIES) | {"aggregated_below_osl": 16}
    assert serving(raw, site("cpu"))["roles"] == {"prefill": 0, "decode": 0, "aggregated_below_osl": 16}


def test_elastic_engines_have_the_layout_of_what_moves() -> None:
    config = llm_configs(rendered("qwen3-14b-elastic-1p3d", "h200")[0])["elastic"]
    assert config["engine_kwargs"]["block_size"] == 128
    assert config["engine_kwargs"]["kv_transfer_config"]["kv_role"] == "kv_both"
