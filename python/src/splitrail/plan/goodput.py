"""The highest rate that a fleet sustains under an SLA: runs long enough to settle, a search over rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import Any

import numpy as np

from splitrail.plan.simulate import Fleet, PoolUse, Run, point, simulate, traffic
from splitrail.workload import Limit, Point, Sla, Window, Workload

# Of the lifetime of a request: until the batches have filled, and what is measured then.
WARM_UP, MEASURED = 1.5, 2.5
# A p90 wants some requests above it.
REQUESTS = 300
TOLERANCE = 0.02
WIDEN = 1.6
PROBES = 24
BATCHES = 8
# Student's t, one-sided 1 %, for the slope through eight batch means.
T_SLOPE = 3.14
# A rise over the window that matters, as a share of the mean.
RISE, RISE_FIRST = 0.10, 0.3
BUSY = 0.9
CROWD = 3.0
LIGHT = 0.02


@dataclass(frozen=True)
class Probe:
    """One simulated run: its figures, whether it was steady, how near each limit came (over 1: broken)."""

    point: Point | None
    steady: bool
    ratios: dict[str, float]
    pools: dict[str, PoolUse]
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the rate counts."""
        return self.steady and all(ratio <= 1 for ratio in self.ratios.values())


@dataclass(frozen=True)
class Goodput:
    """The highest rate found in requests a second (0: not even one request at a time), and what ends it
    there.

    ``binding`` is the limit that breaks first, or ``rate`` where the queues grow before any limit breaks;
    ``pool`` is where the time goes that breaks it.
    """

    qps: float
    at: Probe
    above: Probe | None
    binding: str
    pool: str

    @property
    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "qps": self.qps,
            "binding": self.binding,
            "pool": self.pool,
            "point": self.at.point.model_dump(exclude_defaults=True) if self.at.point else None,
            "pools": {role: vars(use) for role, use in self.at.pools.items()},
            "waits_ms": {name: 1000 * seconds for name, seconds in self.at.waits.items()},
        }


def lifetime(fleet: Fleet, workload: Workload, sla: Sla | None) -> float:
    """Seconds that a request may last: by the SLA's TPOT or E2E where it has one, else by a fair batch."""
    isl, osl = int(workload.isl.mean), workload.osl.mean
    first = fleet.kinds.get("prefill") or fleet.kinds["aggregated"]
    last = fleet.kinds.get("decode") or first
    batch = 32
    alone = first.step.prompt_seconds(isl)
    token = last.step.decode_base(batch) + last.step.context_s * batch * (isl + osl / 2)
    longest = alone + osl * token
    limits = {limit.metric: limit.ms / 1000 for limit in sla.limits} if sla else {}
    if "tpot" in limits:
        longest = alone + osl * limits["tpot"]
    if "e2e" in limits:
        longest = min(longest, limits["e2e"])
    return longest


def window(workload: Workload, qps: float, lasting: float) -> Window:
    """Long enough that batches have filled, and that percentiles mean something."""
    # Lengths and gaps that vary need more of them for the same certainty.
    spread = max(1.0, workload.osl.cv, workload.isl.cv, workload.arrival_cv)
    warm = WARM_UP * lasting * spread
    return Window(seconds=warm + max(MEASURED * lasting * spread, REQUESTS * spread / qps), drop_s=warm)


def probe(fleet: Fleet, workload: Workload, sla: Sla, qps: float, *, seed: int, lasting: float) -> Probe:
    """Simulate one rate and judge it."""
    seen = window(workload, qps, lasting)
    crowd = int(CROWD * qps * lasting + 20 * sqrt(qps * lasting) + 50)
    requests = traffic(workload, qps, seen, seed, even=True)
    run = simulate(fleet, requests, seed=seed, crowd=crowd)
    if run.gave_up:
        return Probe(None, False, {}, run.pools)
    found = point(run, qps, seen)
    settled = steady(run, seen)
    found = found.model_copy(update={"steady": settled})
    ratios = {limit.key: ratio(found, limit) for limit in sla.limits}
    return Probe(found, settled, ratios, run.pools, waits(run, seen))


def ratio(found: Point, limit: Limit) -> float:
    """The figure over its limit; 0 where there is no such figure (a TPOT of single tokens)."""
    value = found.value(limit.key)
    return 0.0 if value is None else value / limit.ms


def steady(run: Run, seen: Window) -> bool:
    """Whether neither waits for first tokens nor whole latencies grow from the window's beginning to its end.

    The window is cut into eight; a line through their means may not rise by more than some share of the mean
    and be sure to rise. An overloaded queue rises in a straight line, a busy but stable one wanders.
    """
    counted = [request for request in run.requests if request.arrival >= seen.drop_s]
    arrival = np.array([request.arrival for request in counted])
    edges = np.linspace(seen.drop_s, seen.seconds, BATCHES + 1)
    slots = np.clip(np.searchsorted(edges, arrival, side="right") - 1, 0, BATCHES - 1)
    first = np.array([request.first for request in counted]) - arrival
    whole = np.array([request.last for request in counted]) - arrival
    filled = [slots == slot for slot in range(BATCHES) if (slots == slot).any()]
    return not any(
        rises([float(times[slot].mean()) for slot in filled], least)
        for times, least in ((whole, RISE), (first, RISE_FIRST))
    )


def rises(means: list[float], least: float) -> bool:
    """Whether a line through these means rises by more than that share of their mean, and not by chance
    (t-test).
    """
    size = len(means)
    if size < BATCHES:
        return False
    x = np.arange(size) - (size - 1) / 2
    y = np.array(means)
    slope = float((x * y).sum() / (x**2).sum())
    rise = slope * (size - 1)
    if rise <= least * float(y.mean()):
        return False
    left = y - y.mean() - slope * x
    error = sqrt(float((left**2).sum()) / (size - 2) / float((x**2).sum()))
    return error == 0 or slope / error > T_SLOPE


def waits(run: Run, seen: Window) -> dict[str, float]:
    """Mean seconds of each leg: to the end of prefill, from there to the first token, and to the last."""
    counted = [request for request in run.requests if request.arrival >= seen.drop_s]
    if not counted:
        return {}
    split = [request for request in counted if request.prefilled >= 0]
    legs = {"decode": float(np.mean([request.last - request.first for request in counted]))}
    if split:
        legs["prefill"] = float(np.mean([request.prefilled - request.arrival for request in split]))
        legs["transfer"] = float(np.mean([request.first - request.prefilled for request in split]))
    else:
        legs["prefill"] = float(np.mean([request.first - request.arrival for request in counted]))
    return legs


def goodput(fleet: Fleet, workload: Workload, sla: Sla, seed: int = 0, near: float | None = None) -> Goodput:
    """Search: bracket, then narrow in logarithms down to 2 %. ``near`` is a guess that saves runs.

    A rate counts when its run was steady and held every limit. One request at a time is tried first: a limit
    that it breaks no rate will hold.
    """
    lasting = lifetime(fleet, workload, sla)
    ceiling = capacity(fleet, workload)
    floor = min(LIGHT * ceiling, LIGHT / lasting * sum(fleet.replicas.values()))
    light = light_probe(fleet, workload, sla, floor, seed)
    if not light.ok:
        binding, pool = bound(light, light, fleet)
        return Goodput(0.0, light, None, binding, pool)
    low, low_probe = floor, light
    high: float | None = None
    high_probe: Probe | None = None
    rate = near or 0.6 * ceiling
    step = 1.08 if near else WIDEN
    for _ in range(PROBES):
        tried = probe(fleet, workload, sla, rate, seed=seed, lasting=lasting)
        if tried.ok:
            low, low_probe = rate, tried
        else:
            high, high_probe = rate, tried
        if high is None:
            rate *= step
        elif high / low <= 1 + TOLERANCE:
            break
        elif low == floor:
            rate = max(rate / step, floor * 1.001)
        else:
            rate = between(low, low_probe, high, high_probe)
        step *= 1.25
    binding, pool = bound(low_probe, high_probe, fleet)
    return Goodput(low, low_probe, high_probe, binding, pool)


def light_probe(fleet: Fleet, workload: Workload, sla: Sla, qps: float, seed: int) -> Probe:
    """A few dozen requests that hardly meet."""
    seen = Window(seconds=1e9, requests=40)
    run = simulate(fleet, traffic(workload, qps, seen, seed), seed=seed)
    found = point(run, qps, seen).model_copy(update={"steady": True})
    return Probe(
        found, True, {limit.key: ratio(found, limit) for limit in sla.limits}, run.pools, waits(run, seen)
    )


def capacity(fleet: Fleet, workload: Workload) -> float:
    """An upper bound of the rate: prompts back to back, and decode steps of as many as the cache holds."""
    isl, osl = workload.isl.mean, workload.osl.mean
    cached = int(isl * workload.hit_rate)
    bounds = []
    for role, kind in fleet.kinds.items():
        prompt = kind.step.prompt_seconds(int(isl) - cached, cached) if role != "decode" else 0.0
        tokens = 0.0
        if role != "prefill":
            batch = max(1, min(kind.settings.max_num_seqs, int(kind.settings.kv_tokens / (isl + osl))))
            step = kind.step.decode_base(batch) + kind.step.context_s * batch * (isl + osl / 2)
            tokens = osl * step / batch
        bounds.append(fleet.replicas[role] / (prompt + tokens))
    return min(bounds)


def between(low: float, low_probe: Probe, high: float, high_probe: Probe | None) -> float:
    """The next rate inside a bracket: where the worst ratio should cross 1, kept off the bracket's ends."""
    share = 0.5
    if high_probe is not None and high_probe.steady and high_probe.ratios:
        key = max(high_probe.ratios, key=lambda name: high_probe.ratios[name])
        under, over = low_probe.ratios[key], high_probe.ratios[key]
        if 0 < under < over:
            share = min(0.8, max(0.2, log(1 / under) / log(over / under)))
    return exp(log(low) + share * log(high / low))


def bound(at: Probe, above: Probe | None, fleet: Fleet) -> tuple[str, str]:
    """Which limit ends the rate, and in which pool the time goes."""
    broken = {key: value for key, value in (above.ratios if above else {}).items() if value > 1}
    binding = max(broken, key=lambda name: broken[name]) if broken else "rate"
    if "aggregated" in fleet.kinds:
        return binding, "aggregated"
    seen = above if above is not None and above.waits else at
    if not seen.waits:
        return binding, "prefill" if seen.pools["prefill"].busy > BUSY else "decode"
    if binding.startswith(("ttft", "rate")):
        return binding, "prefill" if seen.waits["prefill"] >= seen.waits["transfer"] else "decode"
    if binding.startswith("e2e"):
        return binding, "prefill" if seen.waits["prefill"] > seen.waits["decode"] else "decode"
    return binding, "decode"
