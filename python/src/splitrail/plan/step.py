"""How long one engine step takes, and how long a KV cache takes to move: the few figures that are fitted."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from splitrail.workload import Strict


class Step(Strict):
    """Coefficients of an engine step of one model on one kind of GPU at one tensor-parallel size, in seconds.

    A step that computes ``n_i`` new prompt tokens over contexts of ``x_i`` tokens (half of the new ones
    count, as attention is causal), and one token for each of ``b`` decoding requests with ``s`` tokens of
    context in all, lasts

        step_s + token_s * sum(n_i) + attention_s * sum(n_i * x_i) + sequence_s * b + context_s * s
               + experts_s * (1 - (1 - routed_share) ** (b + sum(n_i)))
               + mixed_context_s * s, if there are also new prompt tokens

    The form is DistServe's (prefill linear in tokens and in attention work, decode linear in batch and
    context) on the one step that chunked prefill makes of both. The experts' term is the expected share of a
    layer's experts that at least one token is routed to, as each of those must be read from memory.
    ``mixed_context_s`` is there because attention kernels read the cache of decoding requests several times
    slower in one launch with a long prompt than in a launch of their own (measured: the TTFT of a lone prompt
    rises with the contexts that decode beside it).
    """

    step_s: float = Field(ge=0)
    token_s: float = Field(ge=0)
    attention_s: float = Field(default=0.0, ge=0)
    sequence_s: float = Field(default=0.0, ge=0)
    context_s: float = Field(default=0.0, ge=0)
    experts_s: float = Field(default=0.0, ge=0)
    routed_share: float = Field(default=0.0, ge=0, le=1)
    mixed_context_s: float = Field(default=0.0, ge=0)

    def decode_base(self, batch: int) -> float:
        """Seconds of a pure decode step apart from its contexts."""
        base = self.step_s + self.sequence_s * batch
        if self.experts_s:
            base += self.experts_s * (1.0 - (1.0 - self.routed_share) ** batch)
        return base

    def seconds(self, tokens: int, attention: float, batch: int, context: int) -> float:
        """Seconds of a step; ``attention`` is the sum of new tokens times context."""
        total = self.step_s + self.token_s * tokens + self.attention_s * attention
        total += self.sequence_s * batch + self.context_s * context
        if self.experts_s:
            total += self.experts_s * (1.0 - (1.0 - self.routed_share) ** (batch + tokens))
        if batch and tokens:
            total += self.mixed_context_s * context
        return total

    def prompt_seconds(self, tokens: int, cached: int = 0) -> float:
        """Seconds of one step that computes one prompt alone."""
        return self.seconds(tokens, tokens * (cached + tokens / 2), 0, 0)


class Transfer(Strict):
    """How a KV cache gets from the prefill to the decode engine.

    The decode engine posts one descriptor for each block, layer and half of the cache; while it posts
    (``post_s + descriptor_s * descriptors``), its host launches no step. The bytes move while it posts and
    after, at ``bytes_per_s``, one transfer at a time on each decode engine. ``handoff_s`` is what lies
    between the prefill engine's answer and the decode engine's queue: the client's or proxy's turn.
    """

    post_s: float = Field(default=0.0, ge=0)
    descriptor_s: float = Field(default=0.0, ge=0)
    descriptors_per_block: float = Field(default=1.0, gt=0)
    bytes_per_s: float = Field(gt=0)
    bytes_per_token: float = Field(ge=0)
    handoff_s: float = Field(default=0.0, ge=0)

    def post(self, blocks: int) -> float:
        """Seconds for which the decode engine computes nothing."""
        return self.post_s + self.descriptor_s * self.descriptors_per_block * blocks

    def wire(self, tokens: int) -> float:
        """Seconds on the wire alone."""
        return tokens * self.bytes_per_token / self.bytes_per_s


class Settings(Strict):
    """vLLM engine arguments that the schedule depends on; ``kv_tokens`` is what the cache of one engine
    holds.

    With ``async_scheduling`` the host prepares a step while the GPU runs the one before, so a transfer that
    is posted delays the GPU only by what it takes longer than a decode step, and a cache that has arrived is
    used later than without (``engine.UNSEEN_STEPS``).
    """

    max_num_batched_tokens: int = Field(default=8192, ge=1)
    max_num_seqs: int = Field(default=256, ge=1)
    block_size: int = Field(default=16, ge=1)
    kv_tokens: int = Field(ge=1)
    async_scheduling: bool = True


@dataclass(frozen=True)
class Kind:
    """All that an engine of the simulation needs to know about itself."""

    step: Step
    settings: Settings
    transfer: Transfer | None = None
    prefill_only: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache."""
        return self.settings.kv_tokens // self.settings.block_size
