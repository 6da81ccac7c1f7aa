"""An exporter's text, read: counters, gauges and histograms of each engine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from splitrail.metrics.histogram import Histogram

# vLLM's own names begin with `vllm:`; Ray exports the same ones as `ray_vllm_`.
_RAY = "ray_"
_VLLM = "vllm:"
_SHARES = {"kv_cache_usage_perc"}


class MetricsError(Exception):
    """A text that cannot be read as metrics; the message says whose it is and what is wrong."""


@dataclass
class Reading:
    """The metrics of one source of one exporter, without Ray's and vLLM's prefixes.

    ``values`` are counters (without ``_total``) and gauges, summed over their other labels; ``histograms``
    likewise. ``tags`` are the labels of whatever was read last, which name the source.
    """

    values: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def read_engines(text: str, where: str) -> dict[str, Reading]:
    """The metrics of each engine of an exporter, by replica id; by ``where`` for a vLLM server of its own.

    Raises MetricsError naming ``where``, the exporter.
    """
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in _samples(text, where):
        if _plain(sample.name).startswith("vllm_"):
            found[sample.labels.get("ReplicaId") or where].append(sample)
    return {replica: _reading(samples, "vllm_", where) for replica, samples in found.items()}


def read_proxy(text: str, where: str, application: str | None = None) -> Reading:
    """What Serve's HTTP proxies of an exporter counted, of one application or all. Raises MetricsError."""
    samples = [
        sample
        for sample in _samples(text, where)
        if _plain(sample.name).startswith(("serve_num_http", "serve_http_request"))
        and (application is None or sample.labels.get("application") == application)
    ]
    return _reading(samples, "serve_", where)


def _samples(text: str, where: str) -> Iterator[Sample]:
    try:
        for family in text_string_to_metric_families(text):
            yield from family.samples
    except ValueError as error:
        raise MetricsError(f"{where}: not an exporter's text: {error}") from error


def _plain(name: str) -> str:
    """The name as it is under Ray, without ``ray_``."""
    return "vllm_" + name[len(_VLLM) :] if name.startswith(_VLLM) else name.removeprefix(_RAY)


def _reading(samples: list[Sample], prefix: str, where: str) -> Reading:
    reading = Reading()
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    sums: dict[str, float] = defaultdict(float)
    guessed = False
    for sample in samples:
        name = _plain(sample.name).removeprefix(prefix)
        reading.tags |= {key: value for key, value in sample.labels.items() if key != "le"}
        guessed = guessed or sample.name.startswith(_RAY)
        if name.endswith("_bucket"):
            buckets[name.removesuffix("_bucket")][float(sample.labels["le"])] += sample.value
        elif name.endswith("_sum"):
            sums[name.removesuffix("_sum")] += sample.value
        elif not name.endswith(("_created", "_count")) and not math.isnan(sample.value):
            key = name.removesuffix("_total")
            before = reading.values.get(key, 0.0)
            # Data-parallel ranks add up, but not their shares: of those the fullest rank's is what matters.
            reading.values[key] = max(before, sample.value) if key in _SHARES else before + sample.value
    for name, cumulative in buckets.items():
        try:
            reading.histograms[name] = Histogram.of(cumulative, None if guessed else sums[name])
        except ValueError as error:
            raise MetricsError(f"{where}: {name}: {error}") from error
    return reading
