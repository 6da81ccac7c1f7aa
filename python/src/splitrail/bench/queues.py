"""Queues whose answer is known exactly: what the search finds is compared with it.

A ``Queue`` is something to measure; ``sustainable`` is the highest rate under a limit by queueing theory. One
request is one token, so that TTFT and E2E are both the time from arrival to departure, T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapreplace
from math import ceil, exp, factorial, inf

import numpy as np

from splitrail.bench.measured import Floats, Measured
from splitrail.workload import Window

# Service times are drawn apart from arrivals.
_STREAM = 77


@dataclass(frozen=True)
class Queue:
    """First come, first served by ``servers``; a service lasts ``mean_s``, ``exponential`` or always alike.

    ``slower`` is by which part each second slows a service, and ``age_s`` how long that has gone on.
    """

    servers: int = 1
    mean_s: float = 1.0
    exponential: bool = True
    slower: float = 0.0
    age_s: float = 0.0

    def __call__(self, qps: float, window: Window, seconds: float, seed: int) -> Measured:
        """Serve Poisson arrivals: each begins when a server is free, the earliest first."""
        arrivals = np.concatenate(
            [
                poisson(qps, 0.0, window.drop_s, [seed, 0]),
                poisson(qps, window.drop_s, seconds, [seed, 1]),
            ]
        )
        rng = np.random.default_rng([seed, _STREAM])
        lasting = rng.exponential(self.mean_s, len(arrivals)) if self.exponential else self.mean_s
        lasting = np.broadcast_to(lasting, arrivals.shape) * np.exp(self.slower * (self.age_s + arrivals))
        free = [0.0] * self.servers
        ends = []
        for arrival, service in zip(arrivals.tolist(), lasting.tolist(), strict=True):
            end = max(arrival, free[0]) + service
            heapreplace(free, end)
            ends.append(end)
        left = np.array(ends)
        return Measured(arrivals, arrivals, left, left, np.ones_like(arrivals))

    def within(self, qps: float, limit_s: float) -> float:
        """P(T <= limit) at this rate, exactly."""
        load = qps * self.mean_s / self.servers
        if load >= 1:
            return 0.0
        if not self.exponential:
            if self.servers != 1:
                raise ValueError("M/D/c with c > 1 is not written down here")
            return md1_wait(qps, self.mean_s, limit_s - self.mean_s)
        return mmc_within(qps, 1 / self.mean_s, self.servers, limit_s)

    def sustainable(self, share: float, limit_s: float) -> float:
        """The highest rate with P(T <= limit) >= share; 0 where none has."""
        return highest(lambda qps: self.within(qps, limit_s) >= share, self.servers / self.mean_s)


def poisson(qps: float, begin: float, end: float, seed: list[int]) -> Floats:
    """As many arrivals as the rate says, and otherwise a Poisson process: sorted, uniform over the stretch.

    Drawn by gaps, which one seed gives at every rate (splitrail.bench.traffic draws alike, with lengths).
    """
    count = round(qps * (end - begin))
    gaps = np.random.default_rng(seed).exponential(size=count + 1)
    arrivals: Floats = begin + np.cumsum(gaps)[:-1] / gaps.sum() * (end - begin)
    return arrivals


@dataclass
class Aging:
    """A queue that gets slower for as long as it is measured, from one run to the next: it never settles."""

    slower: float
    age_s: float = 0.0

    def __call__(self, qps: float, window: Window, seconds: float, seed: int) -> Measured:
        """As ``Queue``."""
        run = Queue(slower=self.slower, age_s=self.age_s)(qps, window, seconds, seed)
        self.age_s += seconds
        return run


def mmc_within(rate: float, mu: float, servers: int, t: float) -> float:
    """P(T <= t) of M/M/c, first come, first served.

    P(W > t) = C exp(-(c mu - rate) t), C by Erlang's delay formula; T = W + a service, which is convolved.
    For c = 1 it is 1 - exp(-(mu - rate) t). L. Kleinrock, Queueing Systems, vol. 1: Theory, 1975.
    """
    wait = erlang_c(rate / mu, servers)
    spare = servers * mu - rate
    if abs(spare - mu) < 1e-9 * mu:
        return 1 - exp(-mu * t) * (1 + wait * mu * t)
    return 1 - exp(-mu * t) - wait * mu / (spare - mu) * (exp(-mu * t) - exp(-spare * t))


def erlang_c(offered: float, servers: int) -> float:
    """The probability that an arrival waits, for so many Erlangs. A. K. Erlang, 1917."""
    terms = [offered**k / factorial(k) for k in range(servers)]
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


def md1_wait(rate: float, service: float, t: float) -> float:
    """P(W <= t) of M/D/1 (A. K. Erlang, 1909; H. C. Tijms, A First Course in Stochastic Models, 2003, ch. 9):

    (1 - rate service) sum_{k=0}^{floor(t/service)} exp(-rate (k service - t)) (rate (k service - t))^k / k!.
    Terms alternate, so it is good for t of up to some twenty services.
    """
    if t < 0:
        return 0.0
    total = 0.0
    for k in range(ceil(t / service) + 1):
        moved = rate * (k * service - t)
        if k * service <= t:
            total += exp(-moved) * moved**k / factorial(k)
    return (1 - rate * service) * total


def highest(holds: Callable[[float], bool], top: float) -> float:
    """The highest rate under ``top`` that holds, by bisection to one part in 10^9; 0: not even hardly any."""
    low, high = top * 1e-9, top
    if not holds(low):
        return 0.0
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low < inf else 0.0
