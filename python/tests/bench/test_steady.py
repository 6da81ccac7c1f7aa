"""The gate: each finding is seen to fail, and a steady run to pass."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from splitrail.bench.measured import Measured, achieved, point
from splitrail.bench.queues import Queue
from splitrail.bench.steady import gate, in_flight, ordered
from splitrail.workload import Window

WINDOW = Window(seconds=110, drop_s=10)
RNG = np.random.default_rng(0)
AT = np.arange(0, 130, 0.2)


def run(e2e: float | np.ndarray = 1.0, *, lag: float = 0.0, failed: int = 0) -> Measured:
    """Five requests a second, each with its first token after half its time."""
    lasting = np.broadcast_to(e2e, AT.shape)
    last = AT + lag + lasting
    last = np.where(np.arange(len(AT)) % 20 < failed, np.nan, last)
    first = np.where(np.isnan(last), np.nan, AT + lag + lasting / 2)
    return Measured(AT, AT + lag, first, last, np.full(len(AT), 5.0))


def failing(measured: Measured, window: Window = WINDOW) -> set[str]:
    return {finding.name for finding in gate([measured], window) if not finding.ok}


def test_a_steady_run_passes() -> None:
    assert failing(run()) == set()
    assert failing(run(RNG.exponential(1.0, len(AT)))) == set()


def test_figures_are_what_was_put_in() -> None:
    found = point([run()], 5.0, WINDOW)
    assert (found.requests, found.failed, found.achieved_qps) == (500, 0, 5.0)
    assert found.ttft["p90"] == pytest.approx(500)
    assert found.e2e["p50"] == pytest.approx(1000)
    assert found.tpot["mean"] == pytest.approx(125)  # half a second over the four tokens after the first
    assert np.allclose(in_flight(run(), WINDOW), 5.0)


def test_the_users_wait_counts_from_when_it_was_due() -> None:
    assert point([run(lag=0.3)], 5.0, WINDOW).ttft["p50"] == pytest.approx(800)


def test_growing_latency_is_not_steady() -> None:
    assert "requests in flight" in failing(run(1 + AT / 60))
    assert {"requests in flight", "TTFT"} <= failing(run(1 + AT / 20))


def test_a_curve_is_a_rise_too_and_one_order_in_a_hundred_looks_like_one() -> None:
    # So uneven a rise that a line through it proves nothing.
    assert ordered(np.array([2.0, 2.3, 2.1, 2.6, 3.2, 4.5, 9.0, 26.0]), 0.3)
    orders = list(permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    assert sum(ordered(np.array(one), 0.1) for one in orders[::37]) / len(orders[::37]) < 0.012


def test_a_window_of_few_lifetimes_is_too_short() -> None:
    assert failing(run(25.0)) >= {"length"}


def test_answers_that_do_not_come_back_in_time_are_not_steady() -> None:
    backlog = run(0.2 + 0.1 * AT)  # an answer a 0.22 s in place of 0.2
    assert achieved(backlog, WINDOW) < 4.6
    assert "achieved/offered" in failing(backlog)


def test_failures_are_counted() -> None:
    assert "failed" in failing(run(failed=1))
    assert failing(run(failed=20)) == {"failed"}
    assert point([run(failed=1)], 5.0, WINDOW).failed == 25


def test_a_client_that_lags_is_found() -> None:
    assert failing(run(lag=0.2)) == {"client's lag"}


def test_nothing_in_the_window_is_no_result() -> None:
    assert failing(run(), Window(seconds=300, drop_s=200)) == {"requests"}


def test_an_overloaded_queue_is_never_steady_and_a_busy_one_nearly_always() -> None:
    window = Window(seconds=4000, drop_s=200)
    over = [failing(Queue()(1.1, window, 4000, seed), window) for seed in range(10)]
    busy = [failing(Queue()(0.6, window, 4000, seed), window) for seed in range(40)]
    assert all(over)
    assert sum(bool(one) for one in busy) <= 3
