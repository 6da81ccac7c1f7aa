"""Histograms as Prometheus exports them: growth between two readings, quantiles, what is known of a sum."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Self


@dataclass(frozen=True)
class Spread:
    """A figure of which only the bounds are known; both are the same where it is known exactly."""

    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether it is one figure."""
        return self.low == self.high

    def over(self, other: Spread) -> Spread:
        """The quotient. A divisor that may be zero leaves the upper bound open (infinite)."""
        return Spread(
            self.low / other.high if other.high else 0.0, self.high / other.low if other.low else math.inf
        )

    def times(self, factor: float) -> Spread:
        """The product with an exact factor that is not negative."""
        return Spread(self.low * factor, self.high * factor)

    def text(self, form: str = ".3g") -> str:
        """For people: ``12.4``, ``3.1 to 12.4``, ``3.1 or more`` or ``up to 12.4``."""
        if self.exact:
            return format(self.low, form)
        if not self.low:
            return f"up to {self.high:{form}}"
        if math.isinf(self.high):
            return f"{self.low:{form}} or more"
        return f"{self.low:{form}} to {self.high:{form}}"


@dataclass(frozen=True)
class Histogram:
    """Observations by bucket.

    ``bounds`` are the buckets' upper bounds, rising, the last one infinite; ``counts`` the observations in
    each (not cumulative). ``total`` is the exact sum of the observations, None where the exporter only
    guesses it: Ray rebuilds a histogram from the middles of its buckets, so of its sums only the bounds mean
    anything (ray/_private/telemetry/open_telemetry_metric_recorder.py of Ray 2.60.0).
    """

    bounds: tuple[float, ...] = (math.inf,)
    counts: tuple[float, ...] = (0.0,)
    total: float | None = 0.0

    @classmethod
    def of(cls, cumulative: Mapping[float, float], total: float | None) -> Self:
        """From cumulative counts by upper bound. Raises ValueError without an infinite bucket."""
        bounds = tuple(sorted(cumulative))
        if not bounds or not math.isinf(bounds[-1]):
            raise ValueError(f"a histogram has a bucket +Inf, got {list(bounds)}")
        running = [cumulative[bound] for bound in bounds]
        counts = tuple(after - before for before, after in zip([0.0, *running], running, strict=False))
        return cls(bounds, counts, total)

    @property
    def count(self) -> float:
        """Observations in all."""
        return sum(self.counts)

    def since(self, earlier: Histogram) -> Histogram:
        """What came after an earlier reading; all of it where the exporter has begun anew in between.

        That is Prometheus' rule for counters: one that fell has been reset, and counts from zero.
        """
        if earlier.bounds != self.bounds or any(
            now < then for now, then in zip(self.counts, earlier.counts, strict=True)
        ):
            return self
        total = None if self.total is None or earlier.total is None else self.total - earlier.total
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.bounds, counts, total)

    def plus(self, other: Histogram) -> Histogram:
        """Both together. Raises ValueError for different buckets, which cannot be added."""
        if not other.count:
            return self
        if not self.count:
            return other
        if self.bounds != other.bounds:
            raise ValueError(f"histograms of different buckets: {self.bounds} and {other.bounds}")
        total = None if self.total is None or other.total is None else self.total + other.total
        counts = tuple(one + two for one, two in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, total)

    def quantile(self, share: float) -> float | None:
        """The value below which this share of the observations lies, from 0 to 1; None without any.

        By the rule of Prometheus' ``histogram_quantile``: observations are spread evenly over their bucket,
        the first bucket begins at 0 where its bound is positive, and the last one's values count as its lower
        bound (prometheus.io, querying/functions).
        """
        count = self.count
        if not count:
            return None
        rank = share * count
        running = list(accumulate(self.counts))
        at = min(bisect_left(running, rank), len(self.bounds) - 1)
        if math.isinf(self.bounds[at]):
            return self.bounds[at - 1] if at else None
        if at == 0 and self.bounds[0] <= 0:
            return self.bounds[0]
        low = self.bounds[at - 1] if at else 0.0
        before = running[at - 1] if at else 0.0
        inside = (rank - before) / self.counts[at] if self.counts[at] else 0.0
        return low + (self.bounds[at] - low) * inside

    def sum(self) -> Spread:
        """The sum of the observations: exact, or what its buckets allow (values are not negative)."""
        if self.total is not None:
            return Spread(self.total, self.total)
        edges = [0.0, *self.bounds]
        low = sum(count * edges[at] for at, count in enumerate(self.counts))
        high = sum(count * edges[at + 1] for at, count in enumerate(self.counts) if count)
        return Spread(low, high)

    def mean(self) -> Spread | None:
        """The mean of the observations; None without any."""
        return self.sum().times(1 / self.count) if self.count else None


# No observation of anything.
NOTHING = Histogram()


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them together; an empty one when there are none. Raises ValueError as ``plus`` does."""
    found = NOTHING
    for histogram in histograms:
        found = found.plus(histogram)
    return found
