"""The highest rate that holds an SLA: a bracket, then bisection, each rate as long as it takes to know."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from splitrail.bench.judge import Judged, judge
from splitrail.bench.measured import Measured, point
from splitrail.bench.steady import LAG, Finding, gate
from splitrail.workload import CLIENT, Point, Sla, Sustained, Window, WorkloadError

# What measures: rate, window, seconds to send, seed.
Measure = Callable[[float, Window, float, int], Measured]

# In units of a request's E2E: until batches have filled, what is measured at least, and what is sent after
# it, so that the last requests that count meet as many others as the first.
WARM_UP, MEASURED, AFTER = 2.0, 6.0, 1.0
# Where nothing is known a few requests tell how long one lasts; the search begins with so many in flight.
FEW_QPS, FEW_S = 2.0, 2.0
IN_FLIGHT, LEAST_IN_FLIGHT = 8.0, 0.05
LEAST_REQUESTS = 12
# Runs that only look for the bracket have this part of the requests.
QUICK = 6
WIDEN = 2.0


@dataclass(frozen=True)
class Budget:
    """How far a search may go: in requests that count a run, runs a rate, and seconds of sending in all."""

    requests: int = 300
    repeats: int = 4
    tolerance: float = 0.03
    seconds: float = 3600.0
    run_seconds: float = 900.0
    seed: int = 0


@dataclass
class Tried:
    """A rate with its runs put together."""

    qps: float
    runs: list[tuple[Measured, Window]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    quick: bool = False

    @property
    def steady(self) -> bool:
        """Whether its runs were; what is not is repeated at twice the length before it counts as that."""
        return all(finding.ok for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether the rate is sustained."""
        return self.steady and all(one.holds for one in self.judged)

    @property
    def lagged(self) -> bool:
        """Whether the client's own lag is all that is wrong: then it says nothing of what serves."""
        return {finding.name for finding in self.findings if not finding.ok} == {LAG}

    @property
    def sure(self) -> bool:
        """Whether more runs would say the same: one limit surely broken, or all surely held."""
        if any(not one.holds and one.sure for one in self.judged):
            return True
        return bool(self.judged) and all(one.holds and one.sure for one in self.judged)

    @property
    def window(self) -> Window:
        """Of the last run. Runs of another length do not count."""
        return self.runs[-1][1]

    @property
    def counted(self) -> list[Measured]:
        """The runs that count, whole."""
        return [run for run, window in self.runs if window == self.window]

    @property
    def e2e(self) -> float:
        """Mean E2E in seconds of the requests that count; 0 where none was answered."""
        seconds = np.concatenate([run.within(self.window).seconds("e2e") for run in self.counted])
        seconds = seconds[np.isfinite(seconds)]
        return float(seconds.mean()) if len(seconds) else 0.0

    @property
    def said(self) -> str:
        """The rate's outcome in one line."""
        word = "holds" if self.ok else "not steady" if not self.steady else "breaks"
        sure = "" if self.sure or not self.steady else ", not surely"
        why = f": {_reasons(self)}" if not self.ok else ""
        look = " (short run)" if self.quick else ""
        return f"{self.qps:.4g}/s {word}{sure}{look}{why}"

    @property
    def point(self) -> Point:
        """Its figures, over all runs that count."""
        found = point(self.counted, self.qps, self.window)
        return found.model_copy(
            update={
                "steady": self.steady,
                "unsteady": tuple(str(finding) for finding in self.findings if not finding.ok),
                "attained": {one.limit.key: one.attained for one in self.judged if one.attained},
            }
        )


class Search:
    """One search. ``tried`` keeps every rate, also those that do not count, by the order of trying.

    ``on_try`` is told each rate when it is through, and the seconds of sending that are spent.
    """

    def __init__(
        self,
        measure: Measure,
        sla: Sla,
        budget: Budget,
        on_try: Callable[[Tried, float], None] = lambda _tried, _spent: None,
    ) -> None:
        self.measure, self.sla, self.budget, self.on_try = measure, sla, budget, on_try
        self.tried: list[Tried] = []
        self.spent = 0.0
        self.lasting = 0.0

    def run(self, near: float | None = None) -> Sustained:
        """Search; ``near`` is a guess, such as the planner's, that saves the way there.

        Rates twice or half the last until one holds and one does not, by short runs; then the middle of the
        two in logarithms, measured in full, until they are within the tolerance. Only steady runs count.
        """
        rate = near or IN_FLIGHT / self._alone()
        low, high = self._bracket(rate)
        while low is not None and not self._spent_out():
            if high is None or high.qps / low.qps > 1 + self.budget.tolerance:
                found = self.look(sqrt(low.qps * high.qps) if high else low.qps * WIDEN)
                low, high = (found, high) if found.ok else (low, found)
            elif low.quick:
                found = self.look(low.qps)
                low, high = (found, high) if found.ok else (self._below(found.qps), found)
            elif high.quick:
                found = self.look(high.qps)
                low, high = (found, None) if found.ok else (low, found)
            else:
                break
        return self._sustained(low, high)

    def _alone(self) -> float:
        """How long a request lasts in seconds, from a few that hardly meet. Raises WorkloadError."""
        run = self._measured(FEW_QPS, Window(seconds=FEW_S), self.budget.seed)
        seconds = run.seconds("e2e")
        if not np.isfinite(seconds).any():
            said = "; ".join(dict.fromkeys(run.errors)) or "no request was answered"
            raise WorkloadError(f"the endpoint answers no request of this workload: {said[:500]}")
        self.lasting = float(seconds[np.isfinite(seconds)].mean())
        return self.lasting

    def _bracket(self, rate: float) -> tuple[Tried | None, Tried | None]:
        """Two rates between which the answer lies, by short runs; None where there is none on that side."""
        if not self.lasting:
            self._alone()
        low: Tried | None = None
        high: Tried | None = None
        while (low is None or high is None) and not self._spent_out():
            found = self.look(rate, quick=True)
            low, high = (found, high) if found.ok else (low, found)
            rate = rate * WIDEN if found.ok else rate / WIDEN
            if not found.ok and rate < self._floor:
                break
        return low, high

    @property
    def _floor(self) -> float:
        """Below it requests hardly meet, or too few come in the longest run: nothing lower is tried."""
        return max(LEAST_REQUESTS / self.budget.run_seconds, LEAST_IN_FLIGHT / self.lasting)

    def _below(self, qps: float) -> Tried | None:
        """The first rate under this one that holds in full, by growing steps."""
        step = 1 + self.budget.tolerance
        while qps >= self._floor and not self._spent_out():
            qps /= step
            found = self.look(qps)
            if found.ok:
                return found
            step *= step
        return None

    def look(self, qps: float, *, quick: bool = False) -> Tried:
        """Measure a rate until it is known whether it is sustained, or the repeats are used up."""
        found = Tried(qps, quick=quick)
        longer = 1.0
        for repeat in range(self.budget.repeats):
            window = self._window(qps, longer, quick=quick)
            run = self._measured(qps, window, self.budget.seed + repeat)
            found.runs.append((run, window))
            found.findings = gate(found.counted, window)
            found.judged = self._judged(found)
            span = window.seconds - window.drop_s
            if not found.steady:
                # Longer, then another of that length: what wanders levels out, what grows goes on growing.
                if not self._worth(found) or (longer > 1 and (quick or len(found.counted) > 1)):
                    break
                if longer == 1:
                    longer = max(2.0, 1.2 * MEASURED * found.e2e / span)
            elif quick or found.sure:
                break
            if self._spent_out():
                break
        if found.steady and found.e2e:
            self.lasting = found.e2e
        self.tried.append(found)
        self.on_try(found, self.spent)
        return found

    def _worth(self, found: Tried) -> bool:
        """Whether a longer run may count: not where a limit is surely broken in the unsteady one too."""
        return not any(not one.holds and one.sure for one in found.judged)

    def _window(self, qps: float, longer: float, *, quick: bool) -> Window:
        requests = max(LEAST_REQUESTS, self.budget.requests // QUICK) if quick else self.budget.requests
        warm = WARM_UP * self.lasting
        span = max(MEASURED * self.lasting, requests / qps) * longer
        return Window(seconds=warm + min(span, self.budget.run_seconds), drop_s=warm)

    def _measured(self, qps: float, window: Window, seed: int) -> Measured:
        sending = window.seconds + AFTER * self.lasting
        began = time.monotonic()
        run = self.measure(qps, window, sending, seed)
        self.spent += max(sending, time.monotonic() - began)
        return run

    def _judged(self, found: Tried) -> list[Judged]:
        counted = [run.within(found.window) for run in found.counted]
        return [judge(limit, [run.seconds(limit.metric) for run in counted]) for limit in self.sla.limits]

    def _spent_out(self) -> bool:
        return self.spent >= self.budget.seconds

    def _sustained(self, low: Tried | None, high: Tried | None) -> Sustained:
        counted = low if low is not None and not low.quick else None
        held = [one.qps for one in self.tried if one.ok and one.sure and not one.quick]
        broke = [
            one.qps
            for one in self.tried
            if not one.ok and (one.sure or not one.steady) and not one.quick and not one.lagged
        ]
        above = [qps for qps in broke if counted is None or qps > counted.qps]
        surely = max((qps for qps in held if counted and qps <= counted.qps), default=None)
        doubt = "; no rate held surely: more requests or repeats are needed" if counted and not surely else ""
        return Sustained(
            sla=self.sla,
            qps=counted.qps if counted else None,
            low=surely,
            high=min(above, default=None),
            binding=_binding(high),
            why=self._why(counted, high) + doubt,
            runs=sum(len(one.runs) for one in self.tried),
            requests=sum(len(run.planned) for one in self.tried for run, _ in one.runs),
            seconds=round(self.spent, 1),
        )

    def _why(self, low: Tried | None, high: Tried | None) -> str:
        """What ended the search, in words."""
        if low is not None and high is not None and high.lagged:
            return (
                "the client's own lag ended it, so what serves may hold more: "
                "give the client processors of its own"
            )
        if low is not None and high is not None and high.qps / low.qps <= 1 + self.budget.tolerance:
            return f"known to {self.budget.tolerance:.0%}"
        if self._spent_out():
            return f"the budget of {self.budget.seconds:g} s is used up"
        if low is None and high is not None:
            return f"no rate down to {high.qps:.3g}/s held: {_reasons(high)}"
        return "no rate broke anything"


def _binding(high: Tried | None) -> str:
    """The limit that breaks first above the rate; ``rate``: it was not steady; ``client``: by its own lag."""
    if high is None:
        return ""
    if high.lagged:
        return CLIENT
    broken = [one for one in high.judged if not one.holds]
    return max(broken, key=lambda one: one.ratio).limit.key if broken else "rate"


def _reasons(tried: Tried) -> str:
    told = [str(one) for one in tried.findings if not one.ok]
    told += [f"{one.limit} broken ({one.ratio:.2f} of it)" for one in tried.judged if not one.holds]
    return "; ".join(told)
