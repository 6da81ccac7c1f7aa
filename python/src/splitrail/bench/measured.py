"""What clients saw of a run, request by request, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from splitrail.plan.simulate import statistics
from splitrail.workload import Metric, Point, Window

Floats = np.ndarray
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Measured:
    """One run: arrays over its requests by rising ``planned``, in seconds from its start.

    ``sent`` is when the client really sent, ``first`` and ``last`` when the first and the last token came,
    nan for a request that failed. ``tokens`` are those of the answer. ``errors`` says why requests failed.
    Times that a user waits count from ``planned``: a client that lags makes them worse, never better
    (otherwise an overloaded client would hide the wait: coordinated omission).
    """

    planned: Floats
    sent: Floats
    first: Floats
    last: Floats
    tokens: Floats
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]], errors: Iterable[str] = ()) -> Measured:
        """From rows of (planned, sent, first, last, tokens)."""
        table = np.array(sorted(tuple(row) for row in rows), dtype=float).reshape(-1, 5)
        planned, sent, first, last, tokens = table.T
        return cls(planned, sent, first, last, tokens, tuple(errors))

    @property
    def rows(self) -> list[list[float | None]]:
        """What ``of`` takes, None for nan, so that JSON can hold it."""
        table = np.stack([self.planned, self.sent, self.first, self.last, self.tokens], axis=1)
        return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in table]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[float | None]], errors: Iterable[str] = ()) -> Measured:
        """The reverse of ``rows``."""
        return cls.of(([np.nan if value is None else value for value in row] for row in rows), errors)

    def within(self, window: Window) -> Measured:
        """The requests that count: planned in the window."""
        inside = (self.planned >= window.drop_s) & (self.planned < window.seconds)
        return Measured(
            self.planned[inside],
            self.sent[inside],
            self.first[inside],
            self.last[inside],
            self.tokens[inside],
            self.errors,
        )

    @property
    def ok(self) -> Floats:
        """Which requests were answered."""
        answered: Floats = ~np.isnan(self.last)
        return answered

    def seconds(self, metric: Metric) -> Floats:
        """A metric of every request: inf for one that failed, nan for a TPOT of a single token.

        TPOT leaves the first token out: (last - first) / (tokens - 1).
        """
        if metric == "ttft":
            found = self.first - self.planned
        elif metric == "e2e":
            found = self.last - self.planned
        else:
            single = self.tokens <= 1
            found = (self.last - self.first) / np.where(single, 1.0, self.tokens - 1)
            found = np.where(single & self.ok, np.nan, found)
        return np.where(self.ok, found, np.inf)

    @property
    def lag_ms(self) -> Floats:
        """How late the client sent, in ms."""
        late: Floats = 1000 * (self.sent - self.planned)
        return late


def point(runs: Sequence[Measured], qps: float, window: Window) -> Point:
    """The figures of the requests that count, over runs of one rate and window; only answered ones have
    times.
    """
    counted = [run.within(window) for run in runs]
    figures = {}
    for metric in METRICS:
        values = np.concatenate([run.seconds(metric) for run in counted])
        values = values[np.isfinite(values)]
        if len(values):
            figures[metric] = {name: round(ms, 3) for name, ms in statistics(values).items()}
    lag = np.concatenate([run.lag_ms for run in counted])
    return Point(
        qps=qps,
        achieved_qps=round(sum(achieved(run, window) for run in runs) / len(runs), 4),
        requests=len(lag),
        seconds=round(len(runs) * (window.seconds - window.drop_s), 3),
        failed=sum(int((~run.ok).sum()) for run in counted),
        lag_ms=round(float(np.percentile(lag, 99)), 3) if len(lag) else None,
        runs=len(runs),
        **figures,
    )


def achieved(run: Measured, window: Window) -> float:
    """Answers that ended within the window, a second: of whichever requests, as a server counts."""
    ended = (run.last >= window.drop_s) & (run.last < window.seconds)
    return float(ended.sum()) / (window.seconds - window.drop_s)


def merge(runs: Sequence[Measured]) -> Measured:
    """One run of several shards that began together."""
    rows = [row for run in runs for row in run.rows]
    return Measured.from_rows(rows, [error for run in runs for error in run.errors])
