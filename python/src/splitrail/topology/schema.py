"""The keys of a topology, and what cannot be served on any cluster."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from splitrail.topology.models import Facts, Strict

# Given to an engine by the suite itself from other keys; twice said could be said differently.
RESERVED_ENGINE_KEYS = {
    "kv_transfer_config": "write it as the topology's kv_transfer",
    "tensor_parallel_size": "write it as the pool's tensor_parallel_size",
    "data_parallel_size": "write it as the pool's data_parallel_size",
    "pipeline_parallel_size": "NIXL's connector knows no pipeline parallelism; use tensor_parallel_size",
    "model": "write it as the topology's model",
}


# The pools of each mode.
POOLS = {"pd": ("prefill", "decode"), "aggregated": ("aggregated",), "elastic": ("elastic",)}

# What a decode engine must have in common with the prefill engine whose KV cache it reads.
MUST_MATCH = {
    "kv_cache_dtype": "the KV cache moves as it is",
    "dtype": "the KV cache moves as it is",
    "block_size": "a block is what moves, and NIXL's blocks are not cut or joined on every backend",
    "attention_backend": "the backend lays the KV cache out, and the engines' hand-shake compares its name",
    "quantization": "the engines' hand-shake compares the model's configuration",
}

# vLLM's names for the same type.
_FP8 = {"fp8": "fp8_e4m3"}


class TopologyError(ValueError):
    """A topology that cannot be served; ``str()`` names every key at fault and the cure."""


class Model(Strict):
    """The model: ``id`` is its name at the endpoint, ``source`` a folder on the nodes or a hub id.

    ``facts`` replaces what ``models.yml`` says of it: see ``splitrail.topology.models.Facts``.
    """

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    facts: Facts | None = None


class Pool(Strict):
    """Engines of one kind.

    An engine has ``tensor_parallel_size`` x ``data_parallel_size`` ranks, one GPU each; a replica is a whole
    engine. ``spare``: engines besides, warm, that get no requests until another one dies or a ratio asks for
    them. ``engine`` holds vLLM engine arguments on top of the topology's; ``env`` the environment of these
    alone.
    """

    replicas: int = Field(ge=1)
    spare: int = Field(default=0, ge=0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    data_parallel_size: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=1000, ge=1)
    engine: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel_size * self.data_parallel_size


class Pools(Strict):
    """The pools: prefill and decode are those of mode ``pd``, the others those of the mode of their name."""

    prefill: Pool | None = None
    decode: Pool | None = None
    aggregated: Pool | None = None
    elastic: Pool | None = None


class Ratio(Strict):
    """How many engines of the pool ``elastic`` begin with which role."""

    prefill: int = Field(ge=1)
    decode: int = Field(ge=1)


class KvTransfer(Strict):
    """How the KV cache moves from prefill to decode engines (vLLM's KVTransferConfig).

    ``role`` ``split`` makes prefill engines producers and decode engines consumers; with ``kv_both`` an
    engine can be either from one request to the next.
    """

    connector: Literal["NixlConnector", "NixlPushConnector", "MoRIIOConnector"] = "NixlConnector"
    role: Literal["kv_both", "split"] = "kv_both"
    buffer_device: Literal["cuda", "cpu"] = "cuda"
    extra: dict[str, Any] = Field(default_factory=dict)


class Ingress(Strict):
    """The OpenAI-compatible front."""

    replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=10000, ge=1)


class Topology(Strict):
    """What is served, at which prefill:decode ratio."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    mode: Literal["pd", "aggregated", "elastic"]
    platform: str = ""
    model: Model
    engine: dict[str, Any] = Field(default_factory=dict)
    pools: Pools
    ratio: Ratio | Literal["aggregated"] | None = None
    aggregated_below_osl: int = Field(default=0, ge=0)
    kv_transfer: KvTransfer = KvTransfer()
    ingress: Ingress = Ingress()

    @model_validator(mode="after")
    def _can_be_served(self) -> Topology:
        faults = [
            *self._missing_pools(),
            *self._reserved_keys(),
            *self._kv_mismatches(),
            *self._kv_roles(),
            *self._elastic(),
            *self._spares(),
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def moves_kv(self) -> bool:
        """Whether KV caches move from engine to engine."""
        return self.mode != "aggregated"

    @property
    def served(self) -> dict[str, Pool]:
        """The pools that the mode uses, by name; a copy whose engine arguments hold the topology's too."""
        return {
            name: pool.model_copy(update={"engine": {**self.engine, **pool.engine}})
            for name, pool in ((name, getattr(self.pools, name)) for name in POOLS[self.mode])
            if pool is not None
        }

    def _missing_pools(self) -> Iterator[str]:
        missing = [f"pools.{name}" for name in POOLS[self.mode] if getattr(self.pools, name) is None]
        if missing:
            yield f"mode {self.mode} needs {' and '.join(missing)}"
        pool = self.pools.aggregated
        if self.mode == "aggregated" and pool is not None and pool.data_parallel_size > 1:
            yield (
                f"pools.aggregated.data_parallel_size {pool.data_parallel_size}: Ray's builder of aggregated "
                "serving starts no data-parallel group; write replicas"
            )

    def _reserved_keys(self) -> Iterator[str]:
        places = {"engine": self.engine}
        for name, pool in self.pools:
            if pool is not None:
                places[f"pools.{name}.engine"] = pool.engine
        for place, arguments in places.items():
            for key, cure in RESERVED_ENGINE_KEYS.items():
                if key in arguments:
                    yield f"{place}.{key}: {cure}"

    def _kv_mismatches(self) -> Iterator[str]:
        """What keeps a decode engine from reading the KV cache of a prefill engine."""
        prefill, decode = self.pools.prefill, self.pools.decode
        if self.mode != "pd" or prefill is None or decode is None:
            return
        p, d = prefill.tensor_parallel_size, decode.tensor_parallel_size
        if d % p:
            yield (
                f"pools.decode.tensor_parallel_size {d} is no multiple of pools.prefill.tensor_parallel_size "
                f"{p}: NIXL's connector splits a prefill rank's KV cache over decode ranks; that it joins "
                "several is reported not to work (llm-d pull request 2187); lower prefill's or raise decode's"
            )
        for key, why in MUST_MATCH.items():
            one, other = ({**self.engine, **pool.engine}.get(key) for pool in (prefill, decode))
            if _same(one) != _same(other):
                yield (
                    f"{key} is {one!r} for prefill and {other!r} for decode: {why}, so "
                    "both must be the same; say it once under engine"
                )

    def _kv_roles(self) -> Iterator[str]:
        extra = self.kv_transfer.extra
        for key in ("kv_role", "kv_connector", "engine_id"):
            if key in extra:
                cure = {"kv_role": "role", "kv_connector": "connector"}.get(key)
                yield f"kv_transfer.extra.{key}: " + (
                    f"write it as kv_transfer.{cure}"
                    if cure
                    else "Ray gives each replica its own; take it out"
                )
        if self.kv_transfer.connector == "MoRIIOConnector" and self.kv_transfer.role != "split":
            yield (
                "kv_transfer.role kv_both: MoRIIO tells a producer from a consumer by its role alone; "
                "write split"
            )

    def _spares(self) -> Iterator[str]:
        """Spare engines where nothing can keep requests from them."""
        for name, pool in self.pools:
            if pool is not None and pool.spare and name != "elastic":
                yield (
                    f"pools.{name}.spare {pool.spare}: Ray Serve sends requests to every replica that "
                    "runs, so a spare one would only be a larger pool; raise replicas, or serve in mode "
                    "elastic, whose ingress keeps engines back"
                )

    def _elastic(self) -> Iterator[str]:
        """What keeps engines from changing their roles."""
        pool, ratio = self.pools.elastic, self.ratio
        if pool is None:
            for key in ("ratio", "aggregated_below_osl"):
                if getattr(self, key):
                    yield f"{key}: engines change their roles in mode elastic alone; add pools.elastic"
            return
        if ratio is None:
            yield "pools.elastic needs ratio: {prefill: P, decode: D}, or aggregated"
        elif isinstance(ratio, Ratio) and ratio.prefill + ratio.decode != pool.replicas:
            yield (
                f"ratio has {ratio.prefill} prefill and {ratio.decode} decode, pools.elastic.replicas is "
                f"{pool.replicas}: every engine has a role, so the sum must be the same"
            )
        if pool.data_parallel_size > 1:
            yield (
                f"pools.elastic.data_parallel_size {pool.data_parallel_size}: the application starts no "
                "data-parallel group; write replicas"
            )
        if self.mode != "elastic":
            return
        if self.kv_transfer.connector != "NixlConnector":
            yield (
                f"kv_transfer.connector {self.kv_transfer.connector}: an elastic engine's role is in the "
                "request, as NixlConnector takes it; write NixlConnector"
            )
        if self.kv_transfer.role != "kv_both":
            yield "kv_transfer.role split: an elastic engine has both roles; write kv_both"


def _same(value: Any) -> Any:
    return _FP8.get(value, value) if isinstance(value, str) else value


def parse(raw: object, *, mode: str | None = None) -> Topology:
    """Read a topology from plain data, its mode replaced where ``mode`` is given.

    Raises TopologyError with every key at fault, for a misspelt one with the nearest known name.
    """
    if not isinstance(raw, dict):
        raise TopologyError(f"a topology is a mapping, got {type(raw).__name__}")
    try:
        return Topology.model_validate({**raw, "mode": mode} if mode else raw)
    except ValidationError as error:
        name = raw.get("name", "without a name")
        lines = "; ".join(_explain(dict(fault)) for fault in error.errors())
        raise TopologyError(f"topology {name}: {lines}") from error


def _explain(fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = {field for model in Strict.__subclasses__() for field in model.model_fields}
        near = get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"{place} is not a key of a topology" + (f", do you mean {near[0]}?" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "string_type" and "env" in fault["loc"]:
        message += "; quote it"
    return f"{place}: {message}" if place else message
