"""Measure the latency of requests to the lab's endpoint, one at a time.

usage: python python/benchmarks/lab_latency.py [REQUESTS]     default 100

Each request is a streamed chat completion of 16 tokens at temperature 0 with a prompt of its own, so that no
prefix cache knows it. Five requests warm up. Prints one JSON line: p50, p90 and max in ms of the latency (to
the last token) and of TTFT, and the requests over the goal of 300 ms.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import uuid
from pathlib import Path

import httpx

ENDPOINT = "http://10.87.0.11:8000"
KEY = Path(__file__).resolve().parents[2] / ".secrets/lab/api_key"
TOKENS = 16
GOAL_MS = 300.0


def ask(client: httpx.Client) -> tuple[float, float]:
    """One request; TTFT and latency in ms. Raises httpx.HTTPError, or ValueError on a partial answer."""
    request = {
        "model": "lab-qwen3",
        "messages": [{"role": "user", "content": f"{uuid.uuid4()} " + "upwards and onwards " * 40}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    sent = time.monotonic()
    first, tokens = 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                count = sum(len(choice.get("token_ids") or []) for choice in json.loads(line[6:])["choices"])
                first = first or (time.monotonic() - sent if count else 0.0)
                tokens += count
    if tokens != TOKENS:
        raise ValueError(f"{tokens} tokens of {TOKENS}")
    return 1000 * first, 1000 * (time.monotonic() - sent)


def summary(values: list[float]) -> dict[str, float]:
    """p50, p90 and max of some times in ms."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"p50": round(deciles[4], 1), "p90": round(deciles[8], 1), "max": round(max(values), 1)}


def main() -> int:
    """Ask as often as the command line says."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    headers = {"Authorization": f"Bearer {KEY.read_text().strip()}"}
    with httpx.Client(base_url=ENDPOINT, headers=headers, timeout=120, trust_env=False) as client:
        for _ in range(5):
            ask(client)
        times = [ask(client) for _ in range(count)]
    latencies = [latency for _, latency in times]
    over = sum(latency > GOAL_MS for latency in latencies)
    report = {
        "requests": count,
        "latency_ms": summary(latencies),
        "ttft_ms": summary([ttft for ttft, _ in times]),
        "over_goal": over,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
