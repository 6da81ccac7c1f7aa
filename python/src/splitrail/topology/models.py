"""What a model is, as far as serving it matters: data of ``models.yml``, or a topology's ``model.facts``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

# Bytes of one element, by vLLM's names of types.
ELEMENT_BYTES = {
    "float32": 4,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
TABLE = Path(__file__).parent / "models.yml"


class Strict(BaseModel):
    """A mapping without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Facts(Strict):
    """Shape of a decoder-only transformer, under the names of its ``config.json`` where it has them.

    ``weight_bytes`` and ``embedding_bytes`` are bytes of one weight of the matrices in the layers, and of the
    embedding and the output head, which FP8 checkpoints leave in 16 bits. ``kv_lora_rank`` above 0 means
    multi-head latent attention: one latent of ``kv_lora_rank + qk_rope_head_dim`` elements a token and layer,
    the same on every rank.
    """

    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    dtype: str = "bfloat16"
    weight_bytes: int = Field(default=2, ge=1)
    embedding_bytes: int = Field(default=2, ge=1)
    num_experts: int = 0
    num_experts_per_tok: int = 0
    num_shared_experts: int = 0
    moe_intermediate_size: int = 0
    dense_layers: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    @property
    def attention(self) -> str:
        """``mla`` for multi-head latent attention, else ``gqa``."""
        return "mla" if self.kv_lora_rank else "gqa"

    def _attention_weights(self) -> int:
        if not self.kv_lora_rank:
            q = self.num_attention_heads * self.head_dim
            kv = self.num_key_value_heads * self.head_dim
            return self.hidden_size * (2 * q + 2 * kv)
        heads = self.num_attention_heads
        query = self.qk_nope_head_dim + self.qk_rope_head_dim
        return (
            self.q_lora_rank * (self.hidden_size + heads * query)
            + self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
            + self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
            + heads * self.v_head_dim * self.hidden_size
        )

    def expert_bytes(self) -> int:
        """Bytes of all routed experts: three matrices each (gate, up, down)."""
        layers = self.num_hidden_layers - self.dense_layers
        return (
            layers * self.num_experts * 3 * self.hidden_size * self.moe_intermediate_size * self.weight_bytes
        )

    def other_bytes(self) -> int:
        """Bytes of everything else: attention, dense and shared feed-forward, embedding and output head.

        Norms, routers and scales are left out: less than 0.1 % of the models in ``models.yml``.
        """
        dense = self.dense_layers if self.num_experts else self.num_hidden_layers
        shared = (self.num_hidden_layers - self.dense_layers) * self.num_shared_experts
        feed_forward = (
            3 * self.hidden_size * (dense * self.intermediate_size + shared * self.moe_intermediate_size)
        )
        layers = self.num_hidden_layers * self._attention_weights() + feed_forward
        return layers * self.weight_bytes + 2 * self.vocab_size * self.hidden_size * self.embedding_bytes

    def kv_bytes_per_token(self, tensor_parallel_size: int, element_bytes: int) -> int:
        """Bytes of one token's KV cache on one rank.

        Key and value heads are spread over the ranks, and where there are fewer heads than ranks each rank
        has a whole one; a latent (MLA) is whole on every rank.
        """
        if self.kv_lora_rank:
            elements = self.kv_lora_rank + self.qk_rope_head_dim
        else:
            elements = 2 * max(1, self.num_key_value_heads // tensor_parallel_size) * self.head_dim
        return self.num_hidden_layers * elements * element_bytes

    def tensor_parallel_faults(self, size: int) -> Iterator[str]:
        """Why the model's heads cannot be spread over this many ranks."""
        if self.num_attention_heads % size:
            yield f"{self.num_attention_heads} attention heads cannot be spread evenly over {size} ranks"
        elif not self.kv_lora_rank and self.num_key_value_heads % size and size % self.num_key_value_heads:
            yield (
                f"{self.num_key_value_heads} KV heads can neither be spread nor repeated evenly over "
                f"{size} ranks"
            )


@cache
def _table() -> dict[str, Facts]:
    return {
        name: Facts.model_validate(facts)
        for name, facts in yaml.safe_load(TABLE.read_text(encoding="utf-8")).items()
    }


def facts_of(source: str) -> Facts | None:
    """The facts of a model by the last part of its hub id or folder; None for one that the table lacks."""
    return _table().get(source.rstrip("/").rpartition("/")[2].lower())
