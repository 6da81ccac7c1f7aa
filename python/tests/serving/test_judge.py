"""When a canary is promoted, aborted, or watched on."""

from __future__ import annotations

from typing import Any

import pytest

from splitrail.serving.judge import Rules, judge

Json = dict[str, Any]


def slot(requests: int = 200, errors: int = 0, first: float | None = 100, whole: float | None = 1000) -> Json:
    """What a slot answered, as the ingress tells it."""
    return {
        "requests": requests,
        "errors": errors,
        "error_share": errors / requests if requests else 0.0,
        "first_byte_p50_ms": first,
        "first_byte_p90_ms": first,
        "e2e_p50_ms": whole,
        "e2e_p90_ms": whole,
    }


@pytest.mark.parametrize(
    ("canary", "live", "decision", "says"),
    [
        (slot(), slot(), "promote", "0 of 200 requests failed; p90 of the first byte 100 ms, live 100 ms"),
        (slot(first=119, whole=1199), slot(), "promote", "live 1000 ms"),
        (slot(first=121), slot(), "abort", "first byte 121 ms, live 100 ms: more than 1.2 times"),
        (slot(whole=1201), slot(), "abort", "whole answer 1201 ms, live 1000 ms: more than 1.2 times"),
        (slot(99), slot(), "wait", "99 of 100 requests answered"),
        (slot(0, first=None, whole=None), slot(), "wait", "0 of 100 requests answered"),
        # Two failures of fifty can still be two of a hundred, but one of a hundred is the limit.
        (slot(50, errors=1), slot(), "wait", "50 of 100"),
        (slot(50, errors=2), slot(), "abort", "2 of 50 requests failed, more than 1.0%"),
        (slot(200, errors=3), slot(), "abort", "3 of 200 requests failed"),
        # No worse than what it is to replace.
        (slot(200, errors=3), slot(1000, errors=20), "promote", "3 of 200"),
        (slot(), slot(0, first=None, whole=None), "wait", "there is no comparison"),
    ],
)
def test_it_is_judged_by_its_errors_and_latency(canary: Json, live: Json, decision: str, says: str) -> None:
    found = judge(canary, live, Rules())
    assert (found.decision, says in found.reason) == (decision, True), found


def test_the_rules_can_be_chosen() -> None:
    strict = Rules(requests=10, error_share=0, latency_factor=1)
    assert judge(slot(10), slot(), strict).decision == "promote"
    assert judge(slot(10, errors=1), slot(), strict).decision == "abort"
    assert judge(slot(10, first=101), slot(), strict).decision == "abort"
