"""Whether runs were steady: only then do their figures say something about their rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from splitrail.bench.measured import Floats, Measured, achieved
from splitrail.plan.goodput import BATCHES, RISE, RISE_FIRST, rises
from splitrail.workload import Window

# How many times a request's mean E2E the window must hold: fewer, and one slow batch is the whole of it.
LONG = 5.0
# Of what was offered. Beyond it a queue grows, or requests are lost.
KEPT_UP = 0.97
FAILED = 0.01
# The client's own delay (p99): in ms, or as a share of the median TTFT where that is more.
LAG_MS, LAG_SHARE = 20.0, 0.05
# Answers that came may differ from those that were due by the count's own noise (standard deviations).
NOISE = 2.0
# Pairs of eight values that rise, less those that fall, of 28: 0.7 % of all orders reach it.
ORDERED = 20
# Of the mean: the later half is then three times the first, which is no plateau whatever chance did.
THREEFOLD = 1.0
LAG = "client's lag"


@dataclass(frozen=True)
class Finding:
    """One thing that a steady run must show, in words."""

    name: str
    ok: bool
    measured: str
    required: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}, required {self.required}"


def gate(runs: Sequence[Measured], window: Window) -> list[Finding]:
    """Every finding over runs of one rate and window; they are steady when all are ok.

    The plateau: the window is cut into eight batches, and neither the batches' means of requests in flight
    nor those of TTFT may rise by more than 10 % (TTFT: 30 %) of the mean and be sure to rise, by a line
    through them (Student's t) or by their order (H. B. Mann, Econometrica 13, 1945, p. 245), each at 1 %,
    one-sided. A queue that is overloaded grows in a line, one that gets slower in a curve. Batch means make
    neighbours nearly independent (A. M. Law, Simulation Modeling and Analysis, chapter 9).
    """
    counted = [run.within(window) for run in runs]
    answered = [run.ok for run in counted]
    due = sum(len(ok) for ok in answered)
    if not due:
        return [Finding("requests", False, "0", "some in the window")]
    lost = 1 - sum(float(ok.sum()) for ok in answered) / due
    found = [Finding("failed", lost <= FAILED, f"{lost:.1%}", f"at most {FAILED:.0%}")]
    if lost == 1:
        return found
    e2e = np.concatenate([run.seconds("e2e")[ok] for run, ok in zip(counted, answered, strict=True)])
    # From when it was sent, or a lag would excuse itself.
    ttft = np.concatenate([(run.first - run.sent)[ok] for run, ok in zip(counted, answered, strict=True)])
    seconds, needed = window.seconds - window.drop_s, LONG * float(e2e.mean())
    found.append(
        Finding("length", seconds >= needed, f"{seconds:.3g} s", f"{LONG:g} times E2E, {needed:.3g} s")
    )
    flying = np.mean([in_flight(run, window) for run in runs], axis=0)
    # What was in flight at either end of the windows, each with the spread of a Poisson count.
    share = sum(achieved(run, window) for run in runs) * seconds / due
    required = KEPT_UP - NOISE * float(np.sqrt(2 * flying.mean() * len(runs))) / due
    found.append(Finding("achieved/offered", share >= required, f"{share:.3f}", f"at least {required:.3f}"))
    found.append(_level("requests in flight", flying, RISE))
    found.append(_level("TTFT", _ttft(counted, window), RISE_FIRST))
    lag = float(np.percentile(np.concatenate([run.lag_ms for run in counted]), 99))
    bound = max(LAG_MS, LAG_SHARE * 1000 * float(np.median(ttft)))
    found.append(Finding(LAG, lag <= bound, f"{lag:.3g} ms", f"at most {bound:.3g} ms (p99)"))
    return found


def in_flight(run: Measured, window: Window) -> Floats:
    """Mean count of requests sent and not ended, in each of eight batches of the window."""
    # A request that failed is gone at once.
    last = np.where(run.ok, run.last, run.sent)
    means = []
    for begin, end in pairwise(np.linspace(window.drop_s, window.seconds, BATCHES + 1)):
        spent = np.minimum(last, end) - np.maximum(run.sent, begin)
        means.append(float(np.clip(spent, 0, None).sum() / (end - begin)))
    return np.array(means)


def _ttft(counted: Sequence[Measured], window: Window) -> Floats:
    """Mean TTFT of each batch over the runs; a batch without a request is left out."""
    edges = np.linspace(window.drop_s, window.seconds, BATCHES + 1)
    planned = np.concatenate([run.planned[run.ok] for run in counted])
    ttft = np.concatenate([run.seconds("ttft")[run.ok] for run in counted])
    slots = np.clip(np.searchsorted(edges, planned, side="right") - 1, 0, BATCHES - 1)
    return np.array([float(ttft[slots == slot].mean()) for slot in range(BATCHES) if (slots == slot).any()])


def ordered(means: Floats, least: float) -> bool:
    """Whether eight means rise by their order, and the later half lies over the first by that share of the
    mean; or by so much that no order is asked for.
    """
    half = len(means) // 2
    if not half:
        return False
    gap = (means[half:].mean() - means[:half].mean()) / means.mean()
    score = sum(np.sign(later - one) for at, one in enumerate(means) for later in means[at + 1 :])
    return bool(gap > THREEFOLD or (score >= ORDERED and gap > least))


def _level(name: str, means: Floats, least: float) -> Finding:
    rose = rises([float(mean) for mean in means], least) or ordered(means, least)
    return Finding(name, not rose, f"{means[0]:.3g} to {means[-1]:.3g}", f"no sure rise over {least:.0%}")
