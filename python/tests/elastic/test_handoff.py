"""What a request looks like to a prefill and to a decode engine, and which requests are not handed off."""

from __future__ import annotations

from typing import Any

import pytest

from splitrail_elastic.handoff import KEEP, answer_limit, can_move, decode_leg, prefill_leg

Json = dict[str, Any]
CHAT: Json = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}


def test_the_prefill_engine_makes_one_token_and_keeps_the_cache() -> None:
    asked = prefill_leg({**CHAT, "stream": True, "stream_options": {"include_usage": True}}, "r1")
    assert (asked["max_tokens"], asked["max_completion_tokens"], asked["stream"]) == (1, 1, False)
    assert asked["kv_transfer_params"] == KEEP
    assert asked["messages"] == CHAT["messages"]
    assert asked["request_id"] == "r1"
    assert "stream_options" not in asked


def test_nothing_ends_the_prefill_engines_token_but_its_length() -> None:
    """With any other end vLLM keeps no cache, and a minimum above one would be refused."""
    asked = prefill_leg(
        {"prompt": "hi", "min_tokens": 5, "stop": ["x"], "stop_token_ids": [7], "logprobs": 1}, "r1"
    )
    assert asked["ignore_eos"] is True
    assert not {"min_tokens", "stop", "stop_token_ids", "logprobs", "max_completion_tokens"} & set(asked)


def test_the_decode_engine_gets_the_request_as_it_came() -> None:
    body = {**CHAT, "stream": True, "stop": ["x"]}
    place = {"remote_engine_id": "e0", "do_remote_prefill": True}
    assert decode_leg(body, "r2", place) == {**body, "request_id": "r2", "kv_transfer_params": place}
    assert "kv_transfer_params" not in decode_leg(body, "r2", None)
    assert "request_id" not in body


@pytest.mark.parametrize(
    ("body", "moves"),
    [
        (CHAT, True),
        ({"prompt": "hi", "n": 1, "best_of": 1}, True),
        ({"prompt": [1, 2, 3]}, True),
        ({"prompt": ["a", "b"]}, False),
        ({"prompt": [[1, 2], [3]]}, False),
        ({"prompt": "hi", "n": 2}, False),
        ({"prompt": "hi", "best_of": 2}, False),
        ({"prompt": "hi", "echo": True}, False),
        ({"prompt": "hi", "prompt_logprobs": 0}, False),
        ({"prompt": "hi", "use_beam_search": True}, False),
    ],
)
def test_one_prompt_and_one_answer_can_move(body: Json, moves: bool) -> None:
    assert can_move(body) is moves


def test_the_newer_limit_counts_first() -> None:
    assert answer_limit({"max_tokens": 5, "max_completion_tokens": 3}) == 3
    assert answer_limit({"max_tokens": 5}) == 5
    assert answer_limit({}) is None
