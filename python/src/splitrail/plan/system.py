"""What is known of a system before anything is measured, and what its engines do once measurements were
fitted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from splitrail.plan.simulate import Balancing, Fleet
from splitrail.plan.step import Kind, Settings, Step, Transfer
from splitrail.workload import Engines, Layout, Strict, WorkloadError, explain

Role = Literal["aggregated", "prefill", "decode"]
CROSS_LAYER_BLOCK = 128
# Bytes that one all-reduce moves for a token are two of its hidden vector, twice a layer.
ALL_REDUCES_PER_LAYER = 2


class Gpu(Strict):
    """One kind of GPU: its name (the price table's key) and its data sheet at the model's data type."""

    name: str
    tflops: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    memory_gb_per_s: float = Field(gt=0)


class Shape(Strict):
    """The model's dimensions; ``bytes_per_weight`` and ``bytes_per_kv`` as served (1 for FP8, 2 for BF16)."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    weights: float = Field(gt=0, description="All parameters.")
    active_weights: float = Field(gt=0, description="Parameters that one token uses.")
    experts: int = Field(default=1, ge=1)
    experts_per_token: int = Field(default=1, ge=1)
    expert_weights: float = Field(default=0.0, ge=0, description="Parameters of all routed experts.")
    bytes_per_weight: float = Field(default=2, gt=0)
    bytes_per_kv: float = Field(default=2, gt=0)

    @property
    def kv_bytes(self) -> float:
        """Bytes of KV cache a token: keys and values of every layer and KV head."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.bytes_per_kv

    @property
    def flops(self) -> float:
        """FLOP of a token apart from attention: a multiplication and an addition for each active weight."""
        return 2 * self.active_weights

    @property
    def attention_flops(self) -> float:
        """FLOP of a token for each token of its context: scores and weighted values, all heads and layers."""
        return 4 * self.layers * self.heads * self.head_size

    @property
    def routed_share(self) -> float:
        """Share of a layer's experts that one token is routed to."""
        return self.experts_per_token / self.experts if self.experts > 1 else 0.0


class System(Strict):
    """One model on one kind of GPU under one set of engine arguments, as far as that is known without
    measuring.

    ``tp`` is the tensor-parallel size that the measurements were made with. ``descriptors_per_block`` is two
    a layer, or 1 where the KV layout keeps a block's layers together. ``post_ms`` and ``gb_per_s`` of a
    transfer are given where a microbenchmark measured them, for ``transfer_tokens`` tokens.
    """

    name: str
    source: str = ""
    gpu: Gpu
    model: Shape
    tp: int = Field(default=1, ge=1)
    settings: dict[Role, Settings]
    descriptors_per_block: float = Field(gt=0)
    link_gb_per_s: float = Field(gt=0, description="What one decode engine can fetch at best.")
    post_us_per_descriptor: float | None = None
    balancing: Balancing = "least-outstanding"


class Model(Strict):
    """A calibrated system: what ``calibrate`` writes and ``plan`` reads.

    ``steps`` maps a tensor-parallel size to coefficients; ``residuals`` says how well each point was met.
    """

    version: Literal[1] = 1
    system: System
    steps: dict[int, Step]
    transfer: Transfer
    overhead_s: float = Field(ge=0)
    fitted_to: tuple[str, ...] = ()
    residuals: dict[str, Any] = Field(default_factory=dict)

    def step(self, tp: int) -> Step:
        """Coefficients at a tensor-parallel size; scaled from the nearest measured one where it was not
        measured.
        """
        if tp in self.steps:
            return self.steps[tp]
        nearest = min(self.steps, key=lambda known: (abs(known - tp), known))
        return scaled(self.steps[nearest], self.system, nearest, tp)

    def settings(self, role: Role, tp: int) -> Settings:
        """Engine arguments of a role; the KV cache grows with what the weights leave free on more GPUs."""
        settings = self.system.settings.get(role) or next(iter(self.system.settings.values()))
        if tp == self.system.tp:
            return settings
        # Only with what is known: weights are split, all else of the memory that was used stays used.
        shape, gpu = self.system.model, self.system.gpu
        weights = shape.weights * shape.bytes_per_weight
        usable = 0.9 * gpu.memory_gb * 1e9
        room = usable * tp - weights
        measured_room = usable * self.system.tp - weights
        if room <= 0 or measured_room <= 0:
            raise WorkloadError(
                f"{self.system.name} does not fit into {tp} x {gpu.name}: {weights / 1e9:.0f} GB of weights; "
                "raise the tensor-parallel size"
            )
        return settings.model_copy(
            update={"kv_tokens": max(settings.block_size, int(settings.kv_tokens * room / measured_room))}
        )


def scaled(step: Step, system: System, known: int, tp: int) -> Step:
    """An estimate for another tensor-parallel size: work is split, the all-reduces and the host's share are
    not.

    The host's share of a step is what reading the weights does not explain. Communication is ring all-reduce,
    whose bytes a GPU grow by (n - 1) / n.
    """
    ratio = known / tp
    reading = weights_seconds(system, known)
    host = max(0.0, step.step_s - reading)
    link = system.link_gb_per_s * 1e9
    bytes_per_token = ALL_REDUCES_PER_LAYER * system.model.layers * system.model.hidden * 2 * 2
    wire = bytes_per_token / link * ((tp - 1) / tp - (known - 1) / known)
    return step.model_copy(
        update={
            "step_s": host + min(step.step_s, reading) * ratio,
            "token_s": max(0.0, step.token_s * ratio + wire),
            "attention_s": step.attention_s * ratio,
            "sequence_s": step.sequence_s,
            "context_s": step.context_s * max(ratio, known / min(tp, max(known, system.model.kv_heads))),
            "experts_s": step.experts_s * ratio,
            "mixed_context_s": step.mixed_context_s * ratio,
        }
    )


def weights_seconds(system: System, tp: int) -> float:
    """Seconds to read the weights that every step needs, at the data sheet's rate."""
    shape = system.model
    read = (shape.weights - shape.expert_weights) * shape.bytes_per_weight / tp
    return read / (system.gpu.memory_gb_per_s * 1e9)


def fleet(layout: Layout, model: Model, decode_model: Model | None = None) -> Fleet:
    """The engines of a layout. ``decode_model`` is the decode pool's, where its GPUs are of another kind.

    Raises WorkloadError where the weights do not fit.
    """
    kinds: dict[str, Kind] = {}
    for role, engines in layout.pools.items():
        own = decode_model if role == "decode" and decode_model is not None else model
        kinds[role] = kind(own, _role(role), engines)
    return Fleet(
        kinds=kinds,
        replicas={role: engines.replicas for role, engines in layout.pools.items()},
        overhead_s=model.overhead_s,
        balancing=model.system.balancing,
    )


def kind(model: Model, role: Role, engines: Engines) -> Kind:
    """One engine of a pool."""
    return Kind(
        step=model.step(engines.tp),
        settings=model.settings(role, engines.tp),
        transfer=model.transfer if role == "decode" else None,
        prefill_only=role == "prefill",
    )


def with_cross_layer_blocks(model: Model) -> Model:
    """The same system with vLLM's `enable_cross_layers_blocks`: blocks of 128 tokens, each one descriptor."""
    settings = {
        role: own.model_copy(update={"block_size": CROSS_LAYER_BLOCK})
        for role, own in model.system.settings.items()
    }
    system = model.system.model_copy(update={"settings": settings, "descriptors_per_block": 1.0})
    transfer = model.transfer.model_copy(update={"descriptors_per_block": 1.0})
    return model.model_copy(update={"system": system, "transfer": transfer})


def with_balancing(model: Model, balancing: Balancing) -> Model:
    """The same system behind a router that chooses engines so."""
    system = model.system.model_copy(update={"balancing": balancing})
    return model.model_copy(update={"system": system})


def _role(name: str) -> Role:
    roles: Mapping[str, Role] = {"aggregated": "aggregated", "prefill": "prefill", "decode": "decode"}
    return roles[name]


def load_model(path: Path) -> Model:
    """Read a calibrated model. Raises WorkloadError with the file, each key at fault and the cure."""
    try:
        return Model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WorkloadError(
            f"{path}: {error.strerror}; `splitrail plan calibrate` makes such a file"
        ) from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error
