"""How the KV cache is laid out and moved, by release and kind of attention: data of ``kv_layouts.yml``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from splitrail.topology.models import Strict
from splitrail.topology.schema import Topology

TABLE = Path(__file__).parent / "kv_layouts.yml"
CROSS_LAYERS = "enable_cross_layers_blocks"
_EXTRA, _ENV = "kv_transfer.extra.", "env."


class Choice(Strict):
    """One setting and its reason; ``pd``: it matters only where a KV cache moves."""

    key: str
    value: Any
    why: str = Field(min_length=1)
    pd: bool = False


class CrossLayers(Strict):
    """Attention backends that put the layers of a block side by side."""

    backends: list[str]
    why: str


class Layout(Strict):
    """What is chosen, and what can be asked for, on one release."""

    vllm: str
    connectors: dict[str, str]
    refused: dict[str, str]
    cross_layers: CrossLayers
    layouts: list[str]
    gqa: list[Choice]
    mla: list[Choice]


@cache
def layouts() -> dict[str, Layout]:
    """Every release's entry, by the release's name."""
    return {
        name: Layout.model_validate(entry)
        for name, entry in yaml.safe_load(TABLE.read_text(encoding="utf-8")).items()
    }


def choose(topology: Topology, release: str, attention: str) -> tuple[Topology, list[str]]:
    """The topology with the release's choices filled in, and a line a choice that gives its reason.

    ``attention`` is ``gqa`` or ``mla``. What the topology says itself stays, and is noted as its own. A
    release without an entry leaves everything to vLLM.
    """
    entry = layouts().get(release)
    if entry is None:
        return topology, [f"KV layout: vLLM's own; kv_layouts.yml has no release {release or 'here'}"]
    notes = []
    engine: dict[str, Any] = {}
    env: dict[str, str] = {}
    extra = dict(topology.kv_transfer.extra)
    if topology.moves_kv:
        connector = topology.kv_transfer.connector
        notes.append(f"{connector}: {entry.connectors.get(connector, '')}")
    for choice in getattr(entry, attention):
        if choice.pd and not topology.moves_kv:
            continue
        target, key = _place(choice.key, engine, extra, env)
        said = (
            extra.get(key) if target is extra else _said(topology, key, "env" if target is env else "engine")
        )
        if said is None or target is env:  # each pool's own variables are laid over it
            target[key] = choice.value
        if said is None or said == choice.value:
            notes.append(f"{key} {choice.value}: {choice.why}")
        else:
            notes.append(f"{key} {said}: the topology's own, the table says {choice.value}: {choice.why}")
    pools = {
        name: pool.model_copy(update={"env": {**env, **pool.env}})
        for name, pool in topology.pools
        if pool is not None
    }
    filled = topology.model_copy(
        update={
            "engine": {**engine, **topology.engine},
            "pools": topology.pools.model_copy(update=pools),
            "kv_transfer": topology.kv_transfer.model_copy(update={"extra": extra}),
        }
    )
    return filled, notes


def _place(
    key: str, engine: dict[str, Any], extra: dict[str, Any], env: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """Where a choice belongs, and its name there."""
    for prefix, target in ((_EXTRA, extra), (_ENV, env)):
        if key.startswith(prefix):
            return target, key.removeprefix(prefix)
    return engine, key


def _said(topology: Topology, key: str, place: Literal["engine", "env"]) -> Any:
    """What a topology says of an engine argument or variable: of all pools, or the first that says it."""
    own: list[dict[str, Any]] = [getattr(pool, place) for pool in topology.served.values()]
    places = [topology.engine, *own] if place == "engine" else own
    return next((place[key] for place in places if key in place), None)


def faults(topology: Topology, release: str) -> Iterator[str]:
    """What a topology asks of the KV cache that this release has not."""
    entry = layouts().get(release)
    if entry is None or not topology.moves_kv:
        return
    connector = topology.kv_transfer.connector
    if connector not in entry.connectors:
        yield (
            f"kv_transfer.connector {connector} on release {release}: "
            f"{entry.refused.get(connector, 'unknown')}; use {', '.join(entry.connectors)}"
        )
    backends = entry.cross_layers.backends
    asked = str(topology.kv_transfer.extra.get(CROSS_LAYERS, "false")).lower() == "true"
    for name, pool in topology.served.items():
        backend = pool.engine.get("attention_backend")
        if asked and (not backends or (backend is not None and backend not in backends)):
            what = f"with pools.{name}'s attention_backend {backend}" if backend and backends else ""
            yield (
                f"kv_transfer.extra.{CROSS_LAYERS} {what or 'on release ' + release}: "
                f"{entry.cross_layers.why}; take it out, vLLM would ignore it in silence"
            )
        layout = pool.env.get("VLLM_KV_CACHE_LAYOUT")
        if layout is not None and layout not in entry.layouts:
            yield (
                f"pools.{name}.env.VLLM_KV_CACHE_LAYOUT {layout} on release {release}: "
                f"{entry.cross_layers.why}; it takes {', '.join(entry.layouts)}"
            )
    libraries = topology.kv_transfer.extra.get("backends", ["UCX"])
    if libraries != ["UCX"]:
        yield (
            f"kv_transfer.extra.backends {libraries}: the transport is proven through UCX, and vLLM's KV "
            "caches came as zeros over LIBFABRIC (vllm issue 27055); take it out"
        )
