"""Whether an engine's ranks fit into their GPUs: weights, activations and the KV cache of one whole request.

An estimate from shapes, made to refuse what cannot start; vLLM measures the same at start and is the judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitrail.topology.models import ELEMENT_BYTES, Facts
from splitrail.topology.schema import Pool

GB = 1_000_000_000

# Bytes of a GPU's memory, by platform, from the makers' data sheets with decimal prefixes; tools that count
# the whole show up to 7 % more. MI325X: 256 GB HBM3E, and not the 288 GB of its announcement. H200: 141 GB
# HBM3E.
GPU_BYTES = {"mi325x": 256 * GB, "h200": 141 * GB}

# What runtime, collectives and captured graphs take besides, in GB: 2 for an engine that captures none.
_RUNTIME = 2 * GB
_GRAPHS = 2 * GB


@dataclass(frozen=True)
class Fit:
    """Bytes of one rank, and what they are held against."""

    weights: int
    activations: int
    runtime: int
    kv_request: int
    usable: int

    @property
    def needed(self) -> int:
        """Bytes that the engine must have to start: vLLM wants room for one request of max_model_len."""
        return self.weights + self.activations + self.runtime + self.kv_request

    @property
    def requests(self) -> float:
        """How many requests of max_model_len the KV cache holds at a time."""
        return (self.usable - self.weights - self.activations - self.runtime) / self.kv_request


def fit(facts: Facts, pool: Pool, gpu_bytes: int, utilization: float) -> Fit:
    """The memory of one rank of a pool.

    ``pool.engine`` holds every engine argument; ``utilization`` is the part of the GPU that vLLM takes where
    it is not among them. Weights: everything but the experts is split by tensor parallelism; experts are
    spread over all ranks of the engine with expert parallelism, else split by tensor parallelism.
    Activations: while vLLM profiles a step of max_num_batched_tokens, four hidden states and the
    feed-forward's gate, up and product are alive, with experts the hidden states of every chosen expert in
    and out, and the logits of a step in 32 bits.
    """
    engine = pool.engine
    tensor = pool.tensor_parallel_size
    spread = pool.ranks if engine.get("enable_expert_parallel") else tensor
    dtype = ELEMENT_BYTES.get(str(engine.get("dtype", facts.dtype)), ELEMENT_BYTES[facts.dtype])
    weights = facts.other_bytes() // tensor + facts.expert_bytes() // spread

    length = max_model_len(facts, engine)
    sequences = int(engine.get("max_num_seqs", 256))
    tokens = int(engine.get("max_num_batched_tokens", 8192))
    feed_forward = max(facts.intermediate_size, facts.moe_intermediate_size * facts.num_experts_per_tok)
    hidden = facts.hidden_size * (4 + 2 * facts.num_experts_per_tok)
    activations = tokens * dtype * (hidden + 3 * feed_forward // tensor) + sequences * facts.vocab_size * 4

    kv_dtype = str(engine.get("kv_cache_dtype", "auto"))
    element = ELEMENT_BYTES.get(kv_dtype, dtype)
    return Fit(
        weights=weights,
        activations=activations,
        runtime=_RUNTIME + (0 if engine.get("enforce_eager") else _GRAPHS),
        kv_request=length * facts.kv_bytes_per_token(tensor, element),
        usable=int(gpu_bytes * float(engine.get("gpu_memory_utilization", utilization))),
    )


def max_model_len(facts: Facts, engine: dict[str, Any]) -> int:
    """Tokens of the longest request, prompt and answer: what is set, else the model's own."""
    return int(engine.get("max_model_len", facts.max_position_embeddings))


def default_utilization(vllm: str) -> float:
    """vLLM's own gpu_memory_utilization: 0.9 up to 0.18.0, 0.92 in 0.26.0 and later, of those looked at."""
    major, minor = (int(part) for part in vllm.split(".")[:2])
    return 0.92 if (major, minor) >= (0, 26) else 0.9


def gigabytes(amount: int) -> str:
    """An amount of bytes for people, in GB of 10^9."""
    return f"{amount / GB:.1f}"
