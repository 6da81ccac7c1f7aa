"""A fleet under traffic: arrivals, ingress balancing, engines, and the hand-off between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Literal

import numpy as np

from splitrail.plan.engine import Engine, Request
from splitrail.plan.step import Kind
from splitrail.workload import Lengths, Point, Statistic, Window, Workload

# The engine with the fewest requests; of several each in its turn, or any (``-random``). Which of the two a
# router does decides the tail of TTFT: with few requests on an engine counts are often alike, and a prompt
# that goes to the engine of the prompt before waits for it while another one rests.
Balancing = Literal["least-outstanding", "least-outstanding-random", "round-robin", "two-choices"]
PERCENTILES: dict[Statistic, float] = {"p50": 50, "p90": 90, "p99": 99}


class SimulationError(ValueError):
    """What cannot be simulated; ``str()`` says why and what to change."""


@dataclass(frozen=True)
class Fleet:
    """Engines by role, ``{"aggregated": ...}`` or ``{"prefill": ..., "decode": ...}``, and how many of each.

    ``overhead_s`` lies between a client's sending and an engine's queue: HTTP, tokenising, the ingress.
    """

    kinds: Mapping[str, Kind]
    replicas: Mapping[str, int]
    overhead_s: float = 0.0
    balancing: Balancing = "least-outstanding"


@dataclass(frozen=True)
class PoolUse:
    """What a pool did: shares of time, and averages over its engines' time.

    ``busy`` counts every step, ``prefill`` steps with prompt tokens, ``stalled`` posting of transfers;
    ``batch`` are decoding requests on an engine, ``kv`` the used share of its cache.
    """

    busy: float
    prefill: float
    stalled: float
    batch: float
    kv: float
    preempted: int


@dataclass
class Run:
    """All requests of a simulation, ended or, where it was given up, not."""

    requests: list[Request]
    pools: dict[str, PoolUse]
    seconds: float
    gave_up: bool


def traffic(
    workload: Workload, qps: float, window: Window, seed: int, *, even: bool = False
) -> list[Request]:
    """Draw requests. One seed gives the same lengths and, scaled by the rate, the same gaps at any rate.

    With ``even`` the warm-up and the rest of the window each get exactly as many requests as the rate says: a
    search over rates should not find the luck of a drawing. Bursts inside stay as they were drawn.
    """
    expected = qps * (window.drop_s if window.requests else window.seconds)
    # Six standard deviations of a Poisson count, and more where gaps vary more.
    total = int(expected + 6 * max(1.0, workload.arrival_cv) * expected**0.5) + (window.requests or 50)
    gaps_rng, isl_rng, osl_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    if workload.arrival_cv == 0:
        gaps = np.full(total, 1.0)
    else:
        shape = 1.0 / workload.arrival_cv**2
        gaps = gaps_rng.gamma(shape, 1.0 / shape, total)
    arrivals = np.cumsum(gaps) / qps
    if even:
        arrivals = _evened(arrivals, qps, window)
    isl, osl = _lengths(workload.isl, isl_rng, total), _lengths(workload.osl, osl_rng, total)
    requests = []
    counted = 0
    for index in range(len(arrivals)):
        if arrivals[index] > window.seconds or (window.requests and counted >= window.requests):
            break
        counted += bool(arrivals[index] >= window.drop_s)
        prompt = int(isl[index])
        cached, there = int(prompt * workload.hit_rate), int(prompt * workload.decode_hit_rate)
        requests.append(
            Request(
                index, float(arrivals[index]), prompt, int(osl[index]), cached=cached, remote_cached=there
            )
        )
    return requests


def replay(workload: Workload, sent_s: Sequence[float], seed: int) -> list[Request]:
    """Requests sent at recorded times, in seconds from the start; only their lengths are drawn."""
    endless = Window(seconds=1e12, requests=len(sent_s))
    drawn = traffic(workload, 1.0, endless, seed)
    for request, at in zip(drawn, sent_s, strict=True):
        request.arrival = at
    return drawn


def _evened(arrivals: np.ndarray, qps: float, window: Window) -> np.ndarray:
    warm, rest = round(qps * window.drop_s), round(qps * (window.seconds - window.drop_s))
    begun = arrivals[warm - 1] if warm else 0.0
    first = arrivals[:warm] * (window.drop_s / arrivals[warm])
    later = (arrivals[warm : warm + rest] - begun) / (arrivals[warm + rest] - begun)
    return np.concatenate([first, window.drop_s + later * (window.seconds - window.drop_s)])


def _lengths(lengths: Lengths, rng: np.random.Generator, total: int) -> np.ndarray:
    if lengths.cv == 0:
        return np.full(total, max(1, round(lengths.mean)))
    sigma = np.sqrt(np.log1p(lengths.cv**2))
    drawn = rng.lognormal(np.log(lengths.mean) - sigma**2 / 2, sigma, total)
    return np.clip(np.rint(drawn), 1, lengths.max).astype(int)


def simulate(fleet: Fleet, requests: Sequence[Request], *, seed: int = 0, crowd: int | None = None) -> Run:
    """Serve all requests to their end, or until more than ``crowd`` are in the system.

    Raises SimulationError where a request fits into no cache.
    """
    return _Simulation(fleet, requests, seed).run(crowd)


class _Simulation:
    """The clock: arrivals in order, all else from a heap of (time, number, engine, its version, request)."""

    def __init__(self, fleet: Fleet, requests: Sequence[Request], seed: int) -> None:
        self.requests, self.overhead = requests, fleet.overhead_s
        self.pools = {
            role: [Engine(kind) for _ in range(fleet.replicas[role])] for role, kind in fleet.kinds.items()
        }
        for role, engines in self.pools.items():
            _check(role, engines[0], requests)
        self.entry = self.pools.get("aggregated") or self.pools["prefill"]
        self.decoders = self.pools.get("decode", [])
        self.choose = _balancer(fleet.balancing, seed)
        self.handoff = engines_handoff(fleet)
        self.events: list[tuple[float, int, Engine | None, int, Request | None]] = []
        self.number = count()
        self.ended = 0

    def run(self, crowd: int | None) -> Run:
        requests, events, total = self.requests, self.events, len(self.requests)
        arrived, gave_up, now = 0, False, 0.0
        while arrived < total or events:
            due = requests[arrived].arrival + self.overhead if arrived < total else inf
            if not events or due <= events[0][0]:
                now = due
                self._submit(self.entry, requests[arrived], now)
                arrived += 1
                if crowd is not None and arrived - self.ended > crowd:
                    gave_up = True
                    break
                continue
            now, _, engine, version, request = heappop(events)
            if request is not None:
                self._submit(self.decoders, request, now)
            elif engine is not None and engine.version == version:
                engine.advance(now)
                self._announce(engine, version)
                if engine.finished:
                    self._finished(engine, now)
                if engine.fetched:
                    self._fetched(engine, now)
        use = {role: _use(engines, now) for role, engines in self.pools.items()}
        return Run(list(requests), use, now, gave_up)

    def _submit(self, engines: list[Engine], request: Request, now: float) -> None:
        engine = self.choose(engines)
        version = engine.version
        engine.submit(request, now)
        self._announce(engine, version)

    def _announce(self, engine: Engine, version: int) -> None:
        if engine.until is not None and engine.version != version:
            heappush(self.events, (engine.until, next(self.number), engine, engine.version, None))

    def _finished(self, engine: Engine, now: float) -> None:
        for request in engine.finished:
            if engine.kind.prefill_only:
                request.source = engine
                heappush(self.events, (now + self.handoff, next(self.number), None, 0, request))
            else:
                self.ended += 1
        engine.finished.clear()

    def _fetched(self, engine: Engine, now: float) -> None:
        for request in engine.fetched:
            source = request.source
            if source is not None:
                version = source.version
                source.release(request, now)
                self._announce(source, version)
        engine.fetched.clear()


def engines_handoff(fleet: Fleet) -> float:
    """Seconds between a prefill engine's answer and a decode engine's queue."""
    decode = fleet.kinds.get("decode")
    return decode.transfer.handoff_s if decode is not None and decode.transfer is not None else 0.0


def _check(role: str, engine: Engine, requests: Sequence[Request]) -> None:
    settings = engine.settings
    longest = max(
        (request.isl + (0 if role == "prefill" else request.osl) for request in requests), default=0
    )
    if longest > engine.kind.blocks * settings.block_size:
        raise SimulationError(
            f"a request of {longest} tokens fits into no {role} engine: its KV cache holds "
            f"{engine.kind.blocks * settings.block_size}; raise its tensor-parallel size or shorten prompts"
        )
    if role != "prefill" and settings.max_num_batched_tokens < settings.max_num_seqs:
        raise SimulationError(
            f"{role}: max_num_batched_tokens {settings.max_num_batched_tokens} is under max_num_seqs "
            f"{settings.max_num_seqs}: not every running request would get a token a step; raise the former"
        )


def _balancer(balancing: Balancing, seed: int) -> Callable[[list[Engine]], Engine]:
    turns: dict[int, int] = {}
    rng = np.random.default_rng([seed, 3])
    drawn: list[float] = []

    def below(size: int) -> int:
        if not drawn:
            drawn.extend(rng.random(4096))
        return int(drawn.pop() * size)

    def next_turn(engines: list[Engine]) -> int:
        turn = turns.get(id(engines), 0)
        turns[id(engines)] = (turn + 1) % len(engines)
        return turn

    def least(engines: list[Engine]) -> Engine:
        turn = next_turn(engines)
        return min(engines[turn:] + engines[:turn], key=_outstanding)

    def least_random(engines: list[Engine]) -> Engine:
        fewest = min(engine.outstanding for engine in engines)
        alike = [engine for engine in engines if engine.outstanding == fewest]
        return alike[below(len(alike))]

    def in_turn(engines: list[Engine]) -> Engine:
        return engines[next_turn(engines)]

    def two(engines: list[Engine]) -> Engine:
        # Two that differ, as Ray Serve draws them.
        size = len(engines)
        first = below(size)
        one, other = engines[first], engines[(first + 1 + below(max(1, size - 1))) % size]
        return one if one.outstanding <= other.outstanding else other

    choose: dict[Balancing, Callable[[list[Engine]], Engine]] = {
        "least-outstanding": least,
        "least-outstanding-random": least_random,
        "round-robin": in_turn,
        "two-choices": two,
    }
    return choose[balancing]


def _outstanding(engine: Engine) -> int:
    return engine.outstanding


def _use(engines: list[Engine], seconds: float) -> PoolUse:
    whole = max(seconds, 1e-9) * len(engines)
    return PoolUse(
        busy=sum(engine.busy_s for engine in engines) / whole,
        prefill=sum(engine.prefill_s for engine in engines) / whole,
        stalled=sum(engine.stall_s for engine in engines) / whole,
        batch=sum(engine.batch_s for engine in engines) / whole,
        kv=sum(engine.used_s for engine in engines) / whole,
        preempted=sum(engine.preempted for engine in engines),
    )


def point(run: Run, qps: float, window: Window) -> Point:
    """The figures of the requests that were sent within the window. Needs a run that was not given up."""
    counted = [request for request in run.requests if request.arrival >= window.drop_s]
    if not counted:
        raise SimulationError(f"no request was sent between {window.drop_s:g} and {window.seconds:g} s")
    arrival = np.array([request.arrival for request in counted])
    first = np.array([request.first for request in counted])
    last = np.array([request.last for request in counted])
    osl = np.array([request.osl for request in counted])
    several = osl > 1
    values = {
        "ttft": first - arrival,
        "tpot": (last - first)[several] / (osl[several] - 1),
        "e2e": last - arrival,
    }
    # Between the ends of the first and the last request: the rate at which the window came out again.
    spread = float(last.max() - last.min())
    return Point(
        qps=qps,
        achieved_qps=(len(counted) - 1) / spread if spread > 0 else None,
        requests=len(counted),
        seconds=run.seconds,
        **{name: statistics(seconds) for name, seconds in values.items() if len(seconds)},
    )


def statistics(seconds: np.ndarray) -> dict[Statistic, float]:
    """Percentiles and the mean, in ms."""
    found = dict(zip(PERCENTILES, np.percentile(seconds, list(PERCENTILES.values())), strict=True))
    return {name: float(1000 * value) for name, value in [*found.items(), ("mean", seconds.mean())]}
