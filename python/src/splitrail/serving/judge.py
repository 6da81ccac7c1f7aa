"""Whether a canary is to be promoted: its errors and latency against those of the live application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Rules:
    """When a canary is good enough.

    ``requests``: how many it must have answered before anything is decided. ``error_share``: the most of them
    that may have failed, where the live application fails no more. ``latency_factor``: how many times as long
    as the live application's its p90s may be, of the time to the first byte and to the last.
    """

    requests: int = 100
    error_share: float = 0.01
    latency_factor: float = 1.2


@dataclass(frozen=True)
class Judgement:
    """What is to be done, and why in words."""

    decision: Literal["promote", "abort", "wait"]
    reason: str


def judge(canary: Mapping[str, Any], live: Mapping[str, Any], rules: Rules) -> Judgement:
    """Decide by what both slots answered since the canary began, as playbooks/canary.yml hands it out.

    A canary whose errors can no longer come under the limit is aborted before it has all its requests.
    """
    limit = max(rules.error_share, float(live["error_share"]))
    if canary["errors"] > limit * max(rules.requests, canary["requests"]):
        return Judgement(
            "abort", f"{canary['errors']} of {canary['requests']} requests failed, more than {limit:.1%}"
        )
    if canary["requests"] < rules.requests:
        return Judgement("wait", f"{canary['requests']} of {rules.requests} requests answered")
    compared = []
    for name, said in (("first_byte_p90_ms", "first byte"), ("e2e_p90_ms", "whole answer")):
        own, other = canary[name], live[name]
        if own is None or other is None:
            return Judgement(
                "wait", "the live application has answered nothing since, so there is no comparison"
            )
        words = f"p90 of the {said} {own:.0f} ms, live {other:.0f} ms"
        if own > rules.latency_factor * other:
            return Judgement("abort", f"{words}: more than {rules.latency_factor:g} times as long")
        compared.append(words)
    return Judgement(
        "promote", f"{canary['errors']} of {canary['requests']} requests failed; {'; '.join(compared)}"
    )
