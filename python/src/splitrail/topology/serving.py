"""What is rendered: a topology with everything filled in that release, cluster and purpose decide."""

from __future__ import annotations

from typing import Any

from splitrail.topology import kv_layout, memory
from splitrail.topology.schema import Ratio, Topology, TopologyError, parse
from splitrail.topology.site import ROUTING, Site, facts, faults

# First ports of NIXL's side channels. Ray counts up from them, replica by replica; a firewall must let them
# through.
_SIDE_CHANNEL_PORTS = {"prefill": 20000, "decode": 22000, "elastic": 20000}


def serving(raw: object, site: Site, *, mode: str | None = None) -> dict[str, Any]:
    """The topology as templates/serve/app.yaml.j2 takes it: ``parse``'s keys, and

    ``pools`` of the mode alone, each with every engine argument in ``engine``, its ``kv_role``, and
    ``experimental_configs``; ``notes``: a line a choice that the suite made, with its reason; in mode
    ``elastic`` also ``roles``: the ``user_config`` of the ingress (``splitrail_elastic.pool.Ratio``).

    Raises TopologyError with every reason why the topology cannot run on the site.
    """
    topology = _with_defaults(parse(raw, mode=mode), site)
    model = facts(topology)
    topology, notes = kv_layout.choose(topology, site.name, model.attention if model else "gqa")
    found = list(dict.fromkeys(faults(topology, site)))
    if found:
        raise TopologyError(f"topology {topology.name}: " + "; ".join(found))
    notes += _memory_notes(topology, site)
    if site.bench:
        topology = _for_a_benchmark(topology)
        notes.append(
            "BENCHMARK: random weights and balanced routing of tokens to experts; answers mean nothing"
        )
    return {
        **topology.model_dump(exclude_none=True),
        "pools": {
            name: {
                **pool.model_dump(),
                "kv_role": _kv_role(topology, name),
                "experimental_configs": _experimental(topology, name),
            }
            for name, pool in topology.served.items()
        },
        "notes": notes,
        **({"roles": roles(topology)} if topology.mode == "elastic" else {}),
    }


def roles(topology: Topology) -> dict[str, int]:
    """Who does what in mode ``elastic``; 0 prefill and 0 decode engines: each does both.

    ``spare`` stands there only where the topology keeps engines back: a ratio may then leave some over.
    """
    said = topology.ratio.model_dump() if isinstance(topology.ratio, Ratio) else {"prefill": 0, "decode": 0}
    pool = topology.pools.elastic
    spare = {"spare": pool.spare} if pool and pool.spare else {}
    return {**said, "aggregated_below_osl": topology.aggregated_below_osl, **spare}


def _with_defaults(topology: Topology, site: Site) -> Topology:
    """What every engine of the release wants, under what the topology says."""
    return topology.model_copy(update={"engine": {**site.release.get("engine", {}), **topology.engine}})


def _for_a_benchmark(topology: Topology) -> Topology:
    """Without weights, which take long to load, and with tokens spread evenly over the experts.

    A router with random weights would send most tokens to few experts, and measure that.
    """
    model = facts(topology)
    env = {ROUTING: "uniform_random"} if model and model.num_experts else {}
    pools = {
        name: pool.model_copy(
            update={"engine": {**pool.engine, "load_format": "dummy"}, "env": {**pool.env, **env}}
        )
        for name, pool in topology.pools
        if pool is not None
    }
    return topology.model_copy(update={"pools": topology.pools.model_copy(update=pools)})


def _kv_role(topology: Topology, pool: str) -> str:
    if topology.kv_transfer.role == "kv_both":
        return "kv_both"
    return {"prefill": "kv_producer", "decode": "kv_consumer"}.get(pool, "kv_both")


def _experimental(topology: Topology, pool: str) -> dict[str, Any]:
    if not topology.moves_kv:
        return {}
    configs: dict[str, Any] = {"NIXL_SIDE_CHANNEL_PORT_BASE": _SIDE_CHANNEL_PORTS[pool]}
    # The first request of each pair of engines would pay for their hand-shake.
    return configs | ({"_prewarm_prefill_decode": True} if pool == "decode" else {})


def _memory_notes(topology: Topology, site: Site) -> list[str]:
    model = facts(topology)
    gpu = memory.GPU_BYTES.get(site.platform)
    if model is None or gpu is None:
        return []
    notes = []
    for name, pool in topology.served.items():
        fit = memory.fit(model, pool, gpu, memory.default_utilization(str(site.release["vllm"])))
        gb = memory.gigabytes
        notes.append(
            f"{name}: of {gb(gpu)} GB a rank may take {gb(fit.usable)}: weights {gb(fit.weights)}, "
            f"activations {gb(fit.activations)}, runtime {gb(fit.runtime)} (estimated), which leaves KV "
            f"cache for {fit.requests:.1f} requests of {memory.max_model_len(model, pool.engine)} tokens"
        )
    return notes
