"""A topology: what is served, by how many engines of which kind. Data of ``inventories/topologies``."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Given to an engine by the suite itself from other keys; twice said could be said differently.
RESERVED_ENGINE_KEYS = {
    "kv_transfer_config": "write it as the topology's kv_transfer",
    "tensor_parallel_size": "write it as the pool's tensor_parallel_size",
    "pipeline_parallel_size": "NIXL's connector knows no pipeline parallelism; use tensor_parallel_size",
    "model": "write it as the topology's model",
}


class TopologyError(ValueError):
    """A topology that cannot be served; ``str()`` names every key at fault and the cure."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Model(_Strict):
    """The model: ``id`` is its name at the endpoint, ``source`` a folder on the nodes or a hub id."""

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)


class Pool(_Strict):
    """Engines of one kind.

    ``engine`` holds vLLM engine arguments on top of the topology's; ``env`` the environment of these alone.
    """

    replicas: int = Field(ge=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=1000, ge=1)
    engine: dict[str, Any] = {}
    env: dict[str, str] = {}


class Pools(_Strict):
    """The pools; prefill and decode are used in mode ``pd``, aggregated in mode ``aggregated``."""

    prefill: Pool | None = None
    decode: Pool | None = None
    aggregated: Pool | None = None


class KvTransfer(_Strict):
    """How the KV cache moves from prefill to decode engines (vLLM's KVTransferConfig)."""

    connector: Literal["NixlConnector"] = "NixlConnector"
    buffer_device: Literal["cuda", "cpu"] = "cuda"
    extra: dict[str, Any] = {}


class Ingress(_Strict):
    """The OpenAI-compatible front."""

    replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=10000, ge=1)


class Topology(_Strict):
    """What is served, at which prefill:decode ratio."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    mode: Literal["pd", "aggregated"]
    model: Model
    engine: dict[str, Any] = {}
    pools: Pools
    kv_transfer: KvTransfer = KvTransfer()
    ingress: Ingress = Ingress()

    @model_validator(mode="after")
    def _can_be_served(self) -> Topology:
        faults = [*self._missing_pools(), *self._reserved_keys(), *self._kv_mismatches()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _missing_pools(self) -> Iterator[str]:
        wanted = ("prefill", "decode") if self.mode == "pd" else ("aggregated",)
        missing = [f"pools.{name}" for name in wanted if getattr(self.pools, name) is None]
        if missing:
            yield f"mode {self.mode} needs {' and '.join(missing)}"

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
                f"{p}: NIXL's connector splits a prefill rank's KV cache over decode ranks and joins none; "
                "lower prefill's or raise decode's"
            )
        for key in ("kv_cache_dtype", "dtype"):
            one, other = ({**self.engine, **pool.engine}.get(key) for pool in (prefill, decode))
            if one != other:
                yield (
                    f"{key} is {one!r} for prefill and {other!r} for decode: the KV cache moves as it is, so "
                    "both must be the same; say it once under engine"
                )


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
        known = {field for model in _Strict.__subclasses__() for field in model.model_fields}
        near = get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"{place} is not a key of a topology" + (f", do you mean {near[0]}?" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "string_type" and "env" in fault["loc"]:
        message += "; quote it"
    return f"{place}: {message}" if place else message
