"""What a layout costs: GPU-hours and money for a million tokens, from a price table that the user owns."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from splitrail.plan.simulate import Fleet
from splitrail.workload import Layout, Strict, Workload, WorkloadError, explain

SECONDS_PER_HOUR = 3600
MILLION = 1e6


class Prices(Strict):
    """The price table: money for a GPU-hour by the GPU's name, and GPUs that are rented together."""

    currency: str = "USD"
    gpu_hour: dict[str, float] = Field(min_length=1)
    gpus_per_node: int = Field(default=8, ge=1)

    def hour(self, gpu: str) -> float:
        """Money for a GPU-hour. Raises WorkloadError where the table lacks the GPU."""
        if gpu not in self.gpu_hour:
            raise WorkloadError(f"the price table has no gpu_hour for {gpu!r}; add it")
        return self.gpu_hour[gpu]


class Cost(Strict):
    """Figures of one layout at one rate.

    ``continuous`` counts GPUs in fractions, as a large fleet of such groups would use them; ``whole`` counts
    nodes, each pool's on their own.
    """

    currency: str
    gpu_hours_per_million: float
    money_per_million: float
    money_per_million_output: float
    gpus_continuous: float
    gpus_whole: int
    money_per_hour_continuous: float
    money_per_hour_whole: float
    kv_gb_per_s: float
    kv_gb_per_s_per_decode_engine: float


def load_prices(path: Path) -> Prices:
    """Read a price table. Raises WorkloadError with the file, the key and the cure."""
    try:
        return Prices.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error


def cost(
    layout: Layout,
    fleet: Fleet,
    workload: Workload,
    qps: float,
    *,
    prices: Prices,
    gpus: dict[str, str],
    demand: float,
) -> Cost:
    """Cost of serving ``demand`` requests a second with groups of this layout, each of which sustains
    ``qps``.

    ``gpus`` names the GPU of each pool. Tokens are prompt and answer together, cached ones included, as
    clients are billed. Raises WorkloadError where a price is missing.
    """
    if qps <= 0:
        raise ValueError("a layout that sustains no rate has no cost")
    groups = demand / qps
    pools = layout.pools
    hourly = {role: engines.gpus * prices.hour(gpus[role]) for role, engines in pools.items()}
    nodes = {
        role: ceil(groups * engines.gpus / prices.gpus_per_node - 1e-9) * prices.gpus_per_node
        for role, engines in pools.items()
    }
    output = demand * workload.osl.mean
    tokens = output + demand * workload.isl.mean
    per_hour = groups * sum(hourly.values())
    millions = tokens * SECONDS_PER_HOUR / MILLION
    transfer = 0.0
    if "decode" in fleet.kinds and (how := fleet.kinds["decode"].transfer) is not None:
        transfer = demand * workload.isl.mean * (1 - workload.decode_hit_rate) * how.bytes_per_token / 1e9
    engines_ = groups * (pools["decode"].replicas if "decode" in pools else 1)
    return Cost(
        currency=prices.currency,
        gpu_hours_per_million=groups * layout.gpus / millions,
        money_per_million=per_hour / millions,
        money_per_million_output=per_hour / (output * SECONDS_PER_HOUR / MILLION),
        gpus_continuous=groups * layout.gpus,
        gpus_whole=sum(nodes.values()),
        money_per_hour_continuous=per_hour,
        money_per_hour_whole=sum(nodes[role] * prices.hour(gpus[role]) for role in pools),
        kv_gb_per_s=transfer,
        kv_gb_per_s_per_decode_engine=transfer / engines_,
    )
