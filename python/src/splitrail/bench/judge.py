"""Whether an SLA held, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from splitrail.bench.measured import Floats
from splitrail.workload import Attained, Limit

# Two-sided 95 %.
Z = 1.96
BATCHES = 20
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Judged:
    """A limit under a rate. ``ratio`` is the figure over the limit; ``sure``: the interval leaves no other
    answer.
    """

    limit: Limit
    ratio: float
    holds: bool
    sure: bool
    attained: Attained | None = None


def judge(limit: Limit, runs: Sequence[Floats]) -> Judged:
    """Judge the values of a metric, in seconds by time of sending, each array a run of its own; inf: failed.

    "p90 <= L" is the same as "at least 90 % of the requests are within L", a share, whose interval
    needs no distribution of latencies: Wilson's (J. Am. Stat. Assoc. 22, 1927, p. 209). Requests that
    shared a queue are not independent, so the count that goes into it is the effective one (``effective``).
    A mean is judged by the normal interval of its batch means.
    """
    runs = [values[~np.isnan(values)] for values in runs]
    values = 1000 * np.concatenate(runs) if runs else np.array([])
    if not len(values):
        return Judged(limit, 0.0, holds=True, sure=True)
    if limit.statistic == "mean":
        return _judge_mean(limit, runs)
    share = SHARES[limit.statistic]
    within = [1000 * run <= limit.ms for run in runs]
    reached = float(np.concatenate(within).mean())
    low, high = wilson(reached, effective(within))
    # Linear interpolation between infinities is nan.
    figure = float(np.percentile(values, 100 * share, method="higher"))
    return Judged(
        limit,
        figure / limit.ms,
        holds=reached >= share,
        sure=low >= share or high < share,
        attained=Attained(share=round(reached, 5), low=round(low, 5), high=round(high, 5)),
    )


def wilson(share: float, size: float) -> tuple[float, float]:
    """The 95 % interval of a share seen in ``size`` independent observations."""
    middle = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective(within: Sequence[np.ndarray]) -> float:
    """How many independent observations these are worth: by the variance between the means of batches.

    Independent requests give batch means of variance s(1-s)/m (m requests a batch); what is seen over that is
    the design effect (L. Kish, Survey Sampling, 1965). Never more than there are requests.
    """
    both = np.concatenate(within)
    share = float(both.mean())
    means = batch_means(within)
    if len(means) < BATCHES or share in (0.0, 1.0):
        return float(len(both))
    between = float(np.var(means, ddof=1))
    alone = share * (1 - share) / (len(both) / len(means))
    return len(both) / max(1.0, between / alone)


def batch_means(runs: Sequence[np.ndarray]) -> Floats:
    """Means of twenty batches of each run, in order of time; a run of fewer values is one batch."""
    means = []
    for run in runs:
        parts = np.array_split(run.astype(float), BATCHES) if len(run) >= BATCHES else [run.astype(float)]
        means += [part.mean() for part in parts if len(part)]
    return np.array(means)


def _judge_mean(limit: Limit, runs: Sequence[Floats]) -> Judged:
    mean = float(1000 * np.concatenate(runs).mean())
    means = 1000 * batch_means(runs)
    if not np.isfinite(mean) or len(means) < BATCHES:
        return Judged(limit, mean / limit.ms, holds=mean <= limit.ms, sure=False)
    half = Z * float(np.std(means, ddof=1)) / sqrt(len(means))
    return Judged(limit, mean / limit.ms, holds=mean <= limit.ms, sure=abs(mean - limit.ms) > half)
