"""What a request looks like to the engine that computes its prompt, and to the one that goes on from there.

The hand-off is that of vLLM's NixlConnector, as Ray's own prefill-decode servers do it
(``ray.llm._internal.serve.engines.vllm.kv_transfer.base`` of Ray 2.60.0): the prefill engine is asked for one
token and told that another engine will fetch the KV cache; it answers with where the cache lies, and that
goes to the decode engine with the request itself.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

# How a prefill engine is told to keep a KV cache for another engine.
KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

# Shapes the answer and not the KV cache: the decode engine's affair. What could end the one token of the
# prefill engine otherwise than by its length goes too, because vLLM keeps no cache for such an end.
_DECODE_ALONE = (
    "stream_options",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "stop",
    "stop_token_ids",
    "response_format",
    "structured_outputs",
    "return_token_ids",
)


def can_move(body: Json) -> bool:
    """Whether another engine can go on with a request: one prompt, one answer, nothing said of the prompt.

    Of several prompts or answers each would fetch the same KV cache, and the likelihoods of a prompt's own
    tokens are known only where it was computed.
    """
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt)
    one_answer = (body.get("n") or 1) == 1 and (body.get("best_of") or 1) == 1
    of_the_prompt = body.get("echo") or body.get("prompt_logprobs") is not None
    return one_answer and not (several or of_the_prompt or body.get("use_beam_search"))


def answer_limit(body: Json) -> int | None:
    """The longest answer that a request asks for, in tokens; None where it sets no limit."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit if isinstance(limit, int) else None


def prefill_leg(body: Json, request_id: str) -> Json:
    """The request as the prefill engine gets it: one token, and a KV cache that stays for another engine."""
    kept = {key: value for key, value in body.items() if key not in _DECODE_ALONE}
    limit = {"max_completion_tokens": 1} if "messages" in body else {}
    return {
        **kept,
        **limit,
        "max_tokens": 1,
        "ignore_eos": True,
        "stream": False,
        "kv_transfer_params": dict(KEEP),
        "request_id": request_id,
    }


def decode_leg(body: Json, request_id: str, place: Json | None) -> Json:
    """The request as the engine gets it that answers; ``place``: where the KV cache lies, if anywhere."""
    return {**body, "request_id": request_id, **({"kv_transfer_params": place} if place else {})}
