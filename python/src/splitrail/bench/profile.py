"""Measure before migrating: what a user's own traffic is, and how much of its time is prefill and decode."""

from __future__ import annotations

from math import isinf, sqrt
from pathlib import Path
from typing import Any

import yaml

from splitrail.bench import traces
from splitrail.bench.workloads import describe
from splitrail.metrics.histogram import NOTHING, Histogram, merged
from splitrail.metrics.text import MetricsError, read_engines
from splitrail.plan.system import Model
from splitrail.workload import Lengths, Strict, Workload, WorkloadError


class Profile(Strict):
    """A workload as it was seen.

    ``qps`` is its mean rate where times are on record. ``prefill_share`` is the share of engines' time on
    requests (prefill and decode, without waiting) that went into prefill; ``waiting_share`` the share of all
    that requests waited for. None where the source does not tell.
    """

    source: str
    requests: int
    workload: Workload
    qps: float | None = None
    prefill_share: float | None = None
    waiting_share: float | None = None
    predicted: bool = False

    def lines(self) -> list[str]:
        """For people."""
        work = self.workload
        found = [
            f"{self.requests} requests" + (f", {self.qps:.3g}/s" if self.qps else ""),
            f"prompt {work.isl.mean:g} tokens (cv {work.isl.cv:g})",
            f"answer {work.osl.mean:g} tokens (cv {work.osl.cv:g})",
            f"prefix hits {work.hit_rate:.0%}, gaps between arrivals cv {work.arrival_cv:g}",
        ]
        if self.prefill_share is not None:
            how = "predicted" if self.predicted else "measured"
            found.append(
                f"time: prefill {self.prefill_share:.0%}, decode {1 - self.prefill_share:.0%} ({how})"
            )
        if self.waiting_share is not None:
            found.append(f"requests waited for {self.waiting_share:.0%} of their time")
        return found

    def file(self) -> str:
        """As a file of ``inventories/workloads``."""
        document = {
            "about": f"From {self.source}",
            "workload": self.workload.model_dump(exclude_defaults=True),
        }
        return "---\n" + yaml.safe_dump(document, sort_keys=False, width=110)


def of_source(path: Path, before: Path | None = None, model: Model | None = None) -> Profile:
    """A profile of a trace, an access log, or an exporter's text (the growth since ``before``).

    With ``model`` a trace's shares of time are predicted, of requests served alone. Raises WorkloadError.
    """
    try:
        head = path.read_text(encoding="utf-8-sig")[:4096]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: {error}") from error
    if head.startswith("#") or "vllm" in head.split("{")[0]:
        return of_metrics(path, before)
    name, requests, block = traces.load(path)
    workload = describe(requests, block)
    seconds = requests[-1].at_s - requests[0].at_s
    return Profile(
        source=f"{path.name} ({name})",
        requests=len(requests),
        workload=workload,
        qps=(len(requests) - 1) / seconds if seconds > 0 else None,
        prefill_share=_alone(workload, model) if model else None,
        predicted=model is not None,
    )


def _alone(workload: Workload, model: Model) -> float:
    """The share of prefill in the time of a request that meets no other, by the planner's step times."""
    step = model.steps[min(model.steps)]
    isl, osl = workload.isl.mean, workload.osl.mean
    cached = int(isl * workload.hit_rate)
    prefill = step.prompt_seconds(int(isl) - cached, cached)
    decode = (osl - 1) * (step.decode_base(1) + step.context_s * (isl + osl / 2))
    return prefill / (prefill + decode)


def of_metrics(path: Path, before: Path | None = None) -> Profile:
    """From vLLM's metrics, as its own server or Ray exports them. Raises WorkloadError."""
    lengths = {"isl": "request_prompt_tokens", "osl": "request_generation_tokens"}
    times = ("prefill", "decode", "queue")
    names = [*lengths.values(), *(f"request_{one}_time_seconds" for one in times)]
    histograms, values = _growth(path, before, names)
    for name in lengths.values():
        if not histograms[name].count:
            raise WorkloadError(
                f"{path}: no request was counted by vllm:{name}" + (" since" if before else "")
            )
    isl, osl = (_spread(histograms[name]) for name in lengths.values())
    sums = [(found.low + found.high) / 2 for found in (histograms[name].sum() for name in names[2:])]
    worked = sums[0] + sums[1]
    asked = values.get("prefix_cache_queries", 0.0)
    return Profile(
        source=f"{path.name} (vLLM's metrics)",
        requests=int(histograms[lengths["isl"]].count),
        workload=Workload(
            isl=isl,
            osl=osl,
            hit_rate=round(min(0.99, values.get("prefix_cache_hits", 0.0) / asked), 4) if asked else 0.0,
        ),
        prefill_share=sums[0] / worked if worked else None,
        waiting_share=sums[2] / (worked + sums[2]) if worked + sums[2] else None,
    )


def _growth(
    path: Path, before: Path | None, names: list[str]
) -> tuple[dict[str, Histogram], dict[str, float]]:
    """What was counted between two texts, summed over engines."""
    try:
        now = read_engines(path.read_text(encoding="utf-8"), str(path))
        then = read_engines(before.read_text(encoding="utf-8"), str(before)) if before else {}
    except OSError as error:
        raise WorkloadError(f"{error.filename}: {error.strerror}") from error
    except MetricsError as error:
        raise WorkloadError(str(error)) from error
    # A server of its own is named after its text, so both have the one name that there is.
    pairs = [
        (engine, then.get(replica) or (next(iter(then.values())) if len(now) == len(then) == 1 else None))
        for replica, engine in now.items()
    ]
    histograms = {}
    for name in names:
        found = []
        for engine, earlier in pairs:
            one = engine.histograms.get(name, NOTHING)
            found.append(one.since(earlier.histograms.get(name, NOTHING)) if earlier else one)
        histograms[name] = merged(found)
    values: dict[str, float] = {}
    for engine, earlier in pairs:
        for key, value in engine.values.items():
            grown = value - (earlier.values.get(key, 0.0) if earlier else 0.0)
            values[key] = values.get(key, 0.0) + (grown if grown >= 0 else value)
    return histograms, values


def _spread(histogram: Histogram) -> Lengths:
    """Mean and variation of lengths, the latter by the middles of the buckets."""
    known = histogram.mean()
    if known is None:
        raise AssertionError("asked only of histograms that counted something")
    mean = max(1.0, (known.low + (known.low if isinf(known.high) else known.high)) / 2)
    edges = [0.0, *histogram.bounds]
    middles = [
        (low + (low if isinf(high) else high)) / 2 for low, high in zip(edges, histogram.bounds, strict=False)
    ]
    square = sum(count * middle**2 for count, middle in zip(histogram.counts, middles, strict=True))
    first = sum(count * middle for count, middle in zip(histogram.counts, middles, strict=True))
    center = first / histogram.count
    variance = max(0.0, square / histogram.count - center**2)
    return Lengths(mean=round(mean, 1), cv=round(min(3.0, sqrt(variance) / center), 3) if center else 0.0)


def document(profile: Profile) -> dict[str, Any]:
    """Plain data."""
    return profile.model_dump(exclude_none=True)
