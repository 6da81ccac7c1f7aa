"""The release and the cluster that a topology is to run on, and every reason why it cannot run there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from splitrail.topology import kv_layout, memory
from splitrail.topology.models import Facts, facts_of
from splitrail.topology.schema import Pool, Topology
from splitrail.transport import TransportError, check_engine_env, check_node_env

ROUTING = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"
# Columns and rows of one scale in FP8 checkpoints.
_FP8_BLOCK = 128

# What no engine's environment may hold, and why.
_FORBIDDEN_ENV = {
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "Ray gives each replica a port of its own, and a fixed one is taken twice",
    "ROCR_VISIBLE_DEVICES": "Ray chooses each worker's GPUs by HIP_VISIBLE_DEVICES, and refuses this one",
    "HIP_VISIBLE_DEVICES": "Ray sets it for each worker",
    "CUDA_VISIBLE_DEVICES": "Ray sets it for each worker",
}


@dataclass(frozen=True)
class Site:
    """Where a topology is to run. What is left empty is not checked.

    ``release``: a file of inventories/releases. ``nodes``: what each node offers to Ray, by its name.
    ``worker_bundle`` and ``pool_resources``: what one rank reserves. ``env``: of all engines; ``node_env``
    and ``node_volumes``: of Ray's nodes, which engines inherit.
    """

    release: Mapping[str, Any] = field(default_factory=dict)
    transport: str = ""
    nodes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    worker_bundle: Mapping[str, float] = field(default_factory=lambda: {"GPU": 1})
    pool_resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    node_env: Mapping[str, str] = field(default_factory=dict)
    node_volumes: tuple[str, ...] = ()
    bench: bool = False

    @property
    def name(self) -> str:
        """The release's name, empty where none is given."""
        return str(self.release.get("name", ""))

    @property
    def platform(self) -> str:
        """The release's platform, empty where none is given."""
        return str(self.release.get("platform", ""))


def facts(topology: Topology) -> Facts | None:
    """The model's facts: the topology's own, else those of the table."""
    return topology.model.facts or facts_of(topology.model.source)


def faults(topology: Topology, site: Site) -> Iterator[str]:
    """Why a topology with all its engine arguments cannot run on a site; each names its key and the cure."""
    if topology.platform and site.platform and topology.platform != site.platform:
        yield (
            f"platform {topology.platform}: release {site.name} is for {site.platform}; "
            "choose another release or topology"
        )
    yield from kv_layout.faults(topology, site.name)
    if topology.moves_kv and site.platform == "cpu" and topology.kv_transfer.buffer_device != "cpu":
        yield "kv_transfer.buffer_device cuda: platform cpu has no device memory; write cpu"
    yield from _environment(topology, site)
    yield from _node_environment(site)
    yield from _weights_of_a_benchmark(topology, site)
    yield from _model(topology, site)
    yield from _places(topology, site)


def _environment(topology: Topology, site: Site) -> Iterator[str]:
    places = {"llm_serve_env": site.env}
    places |= {f"pools.{name}.env of the topology": pool.env for name, pool in topology.served.items()}
    for place, env in places.items():
        for key, why in _FORBIDDEN_ENV.items():
            if key in env:
                yield f"{place}: {key}: {why}; take it out"
        if env.get("UCX_MEM_MMAP_HOOK_MODE") == "none" and site.platform.startswith("mi3"):
            yield f"{place}: UCX_MEM_MMAP_HOOK_MODE none crashes UCX on ROCm; take it out"
        if ROUTING in env and not site.bench:
            yield f"{place}: {ROUTING} makes answers meaningless; it belongs to llm_serve_bench alone"
        try:
            check_engine_env(env, site.transport, place)
        except TransportError as error:
            yield str(error)


def _node_environment(site: Site) -> Iterator[str]:
    """What Ray's nodes hand on; their own role looks at it again when it starts them."""
    env = site.node_env
    if not env:
        return
    try:
        # Which RDMA devices a node has is found there, and looked at by the role that starts Ray.
        check_node_env({"UCX_NET_DEVICES": "found there", **env}, site.transport)
    except TransportError as error:
        yield f"the nodes' environment: {error}"
    for key, why in _FORBIDDEN_ENV.items():
        if key in env:
            yield f"the nodes' environment: {key}: {why}; take it out"
    dmabuf = env.get("UCX_ROCM_COPY_DMABUF", "no")
    targets = {volume.split(":")[1] for volume in site.node_volumes if ":" in volume}
    if dmabuf not in ("no", "n", "0", "off") and "/boot" not in targets:
        yield (
            f"the nodes' environment: UCX_ROCM_COPY_DMABUF {dmabuf} without /boot in the containers: UCX "
            "asks /boot/config-KERNEL whether the kernel can; add the volume /boot:/boot:ro"
        )


def _weights_of_a_benchmark(topology: Topology, site: Site) -> Iterator[str]:
    if site.bench:
        return
    for name, pool in topology.served.items():
        if pool.engine.get("load_format") == "dummy":
            yield (
                f"pools.{name}: load_format dummy serves random weights; take it out, "
                "and set llm_serve_bench for a benchmark without weights"
            )


def _model(topology: Topology, site: Site) -> Iterator[str]:
    model = facts(topology)
    if model is None:
        if site.platform in memory.GPU_BYTES:
            yield (
                f"model.source {topology.model.source}: models.yml has no such model, so nobody knows "
                "whether it fits; write its shape as model.facts"
            )
        return
    for name, pool in topology.served.items():
        place = f"pools.{name}"
        length = memory.max_model_len(model, pool.engine)
        if length > model.max_position_embeddings:
            yield (
                f"{place}: max_model_len {length} is above the model's own "
                f"{model.max_position_embeddings}; lower it"
            )
        fault = next(model.tensor_parallel_faults(pool.tensor_parallel_size), None)
        if fault:
            yield f"{place}.tensor_parallel_size {pool.tensor_parallel_size}: {fault}; choose another"
        yield from _parallelism(place, pool, model)
        if site.platform in memory.GPU_BYTES and not fault:
            yield from _memory(place, pool, model, site)
    served = topology.served
    if topology.mode == "pd":
        prompt, whole = (memory.max_model_len(model, served[pool].engine) for pool in ("prefill", "decode"))
        if whole < prompt:
            yield (
                f"max_model_len is {prompt} for prefill and {whole} for decode, which must hold prompt and "
                "answer; say it once under engine"
            )


def _parallelism(place: str, pool: Pool, model: Facts) -> Iterator[str]:
    expert = bool(pool.engine.get("enable_expert_parallel"))
    if expert and not model.num_experts:
        yield f"{place}: enable_expert_parallel, but the model has no experts; take it out"
    if expert and pool.ranks == 1:
        yield f"{place}: enable_expert_parallel over one GPU spreads nothing; take it out"
    if expert and model.num_experts % pool.ranks:
        yield (
            f"{place}: {model.num_experts} experts cannot be spread evenly over {pool.ranks} GPUs; choose "
            "another tensor_parallel_size or data_parallel_size"
        )
    if pool.data_parallel_size > 1 and not (expert and model.num_experts):
        yield (
            f"{place}.data_parallel_size {pool.data_parallel_size} without enable_expert_parallel makes "
            "copies that wait for one another; write replicas, or spread the experts"
        )
    split = model.moe_intermediate_size // pool.tensor_parallel_size
    if model.num_experts and not expert and model.weight_bytes == 1 and split % _FP8_BLOCK:
        yield (
            f"{place}.tensor_parallel_size {pool.tensor_parallel_size} cuts the experts' "
            f"{model.moe_intermediate_size} columns into {split}, through the FP8 blocks of {_FP8_BLOCK}; "
            "set enable_expert_parallel"
        )


def _memory(place: str, pool: Pool, model: Facts, site: Site) -> Iterator[str]:
    gpu = memory.GPU_BYTES[site.platform]
    fit = memory.fit(model, pool, gpu, memory.default_utilization(str(site.release["vllm"])))
    if fit.needed > fit.usable:
        gb = memory.gigabytes
        yield (
            f"{place}: does not fit: a rank needs {gb(fit.needed)} GB (weights {gb(fit.weights)}, "
            f"activations {gb(fit.activations)}, runtime {gb(fit.runtime)}, KV cache of one request of "
            f"{memory.max_model_len(model, pool.engine)} tokens {gb(fit.kv_request)}) and may take "
            f"{gb(fit.usable)} of the GPU's {gb(gpu)}; raise tensor_parallel_size or lower max_model_len "
            "or max_num_batched_tokens"
        )


def _places(topology: Topology, site: Site) -> Iterator[str]:
    """Whether the nodes hold all engines, the ranks that exchange tensors on one node each."""
    texts = [
        f"llm_serve_nodes.{node}.{key} is {amount!r}: write a number"
        for node, offer in site.nodes.items()
        for key, amount in offer.items()
        if not isinstance(amount, int | float)
    ]
    yield from texts
    if not site.nodes or texts:
        return
    free = {node: dict(offer) for node, offer in site.nodes.items()}
    for name, pool in topology.served.items():
        rank = {**site.worker_bundle, **site.pool_resources.get(name, {})}
        group = {key: amount * pool.tensor_parallel_size for key, amount in rank.items()}
        said = ", ".join(f"{amount:g} {key}" for key, amount in group.items())
        if not any(_has(offer, group) for offer in site.nodes.values()):
            yield (
                f"pools.{name}.tensor_parallel_size {pool.tensor_parallel_size}: no node offers {said}, "
                "and tensor parallel ranks exchange every layer, so they share a node; lower it"
            )
            continue
        wanted = (pool.replicas + pool.spare) * pool.data_parallel_size
        placed = sum(_take(free, group) for _ in range(wanted))
        if placed < wanted:
            less = "replicas or spare" if pool.spare else "replicas"
            yield (
                f"pools.{name}: {wanted} times {said} {'are' if wanted > 1 else 'is'} asked for and the "
                f"nodes have room for {placed}; lower {less}, or move or add nodes of that pool"
            )


def _has(offer: Mapping[str, float], group: Mapping[str, float]) -> bool:
    return all(offer.get(key, 0) >= amount for key, amount in group.items())


def _take(free: dict[str, dict[str, float]], group: Mapping[str, float]) -> bool:
    """Take a group's resources from the first node that has them."""
    for offer in free.values():
        if _has(offer, group):
            for key, amount in group.items():
                offer[key] -= amount
            return True
    return False
