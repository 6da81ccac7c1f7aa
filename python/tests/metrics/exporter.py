"""Exporters' texts as Ray and vLLM write them, for tests: a few observations in, a whole page out.

The buckets are vLLM 0.32.0's (v1/metrics/buckets.py, kv_connector/v1/nixl/stats.py), the labels and sums
those that Ray 2.60.0's exporter gives: a sum is made of the buckets' middles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
POST = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
BYTES = tuple(float(2048 * 4**power) for power in range(12))
DESCRIPTORS = (10.0, 20, 30, 50, 75, 100, 200, 400, 1000, 2000, 4000, 10000, 20000, 50000)
BUCKETS = {
    "time_to_first_token_seconds": TTFT,
    "request_time_per_output_token_seconds": ITL,
    "inter_token_latency_seconds": ITL,
    "e2e_request_latency_seconds": LATENCY,
    "request_queue_time_seconds": LATENCY,
    "request_prefill_time_seconds": LATENCY,
    "request_decode_time_seconds": LATENCY,
    "nixl_xfer_time_seconds": POST[1:],
    "nixl_post_time_seconds": POST,
    "nixl_bytes_transferred": BYTES,
    "nixl_num_descriptors": DESCRIPTORS,
}


@dataclass
class Engine:
    """What an engine has counted since it started; ``seen`` holds observations by histogram."""

    replica: str = "abc"
    model: str = "m"
    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[float]] = field(default_factory=dict)

    def transfer(self, count: int, *, size: float, descriptors: float, post_s: float, seconds: float) -> None:
        """Transfers of one kind."""
        for key, value in (
            ("nixl_bytes_transferred", size),
            ("nixl_num_descriptors", descriptors),
            ("nixl_post_time_seconds", post_s),
            ("nixl_xfer_time_seconds", seconds),
        ):
            self.seen.setdefault(key, []).extend([value] * count)

    def text(self, *, ray: bool = True) -> str:
        """Its page: Ray's, or that of a vLLM server of its own."""
        prefix = "ray_vllm_" if ray else "vllm:"
        labels = f'model_name="{self.model}",engine="0"'
        labels += f',ReplicaId="{self.replica}",NodeAddress="10.0.0.1"' if ray else ""
        lines = []
        for name, value in self.counters.items():
            lines += [f"# TYPE {prefix}{name}_total counter", f"{prefix}{name}_total{{{labels}}} {value}"]
        for name, value in self.gauges.items():
            lines += [f"# TYPE {prefix}{name} gauge", f"{prefix}{name}{{{labels}}} {value}"]
        for name, values in self.seen.items():
            lines += histogram(prefix + name, labels, BUCKETS[name], values, middles=ray)
        return "\n".join([*lines, ""])


def histogram(
    name: str, labels: str, bounds: Sequence[float], values: Sequence[float], *, middles: bool
) -> list[str]:
    """The lines of a histogram."""
    edges = [*bounds, math.inf]
    lines = [f"# TYPE {name} histogram"]
    for bound in edges:
        shown = "+Inf" if math.isinf(bound) else repr(float(bound))
        lines.append(f'{name}_bucket{{{labels},le="{shown}"}} {sum(value <= bound for value in values)}')
    total = sum(_middle(bounds, value) if middles else value for value in values)
    return [*lines, f"{name}_count{{{labels}}} {len(values)}", f"{name}_sum{{{labels}}} {total}"]


def _middle(bounds: Sequence[float], value: float) -> float:
    """Where Ray takes an observation to be."""
    at = next((at for at, bound in enumerate(bounds) if value <= bound), None)
    if at is None:
        return 2 * bounds[-1]
    return ((bounds[at - 1] if at else 0.0) + bounds[at]) / 2
