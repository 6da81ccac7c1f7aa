"""The search against queues whose answer is known; a longer version is python/benchmarks/bench_method.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from splitrail.bench.measured import Measured
from splitrail.bench.queues import Aging, Queue, md1_wait
from splitrail.bench.search import Budget, Search, Tried
from splitrail.workload import Window, WorkloadError, read_sla

ENDLESS: Any = {"seconds": 1e12, "run_seconds": 1e9}


@pytest.mark.parametrize(
    ("queue", "qps", "limit_s"),
    [
        (Queue(), 0.7, 5.0),
        (Queue(servers=4), 3.2, 3.0),
        (Queue(servers=2), 1.0, 2.0),
        (Queue(exponential=False), 0.8, 4.5),
    ],
)
def test_theory_and_simulation_agree(queue: Queue, qps: float, limit_s: float) -> None:
    window = Window(seconds=60000 / qps, drop_s=500)
    run = queue(qps, window, window.seconds, 1).within(window)
    assert float((run.seconds("e2e") <= limit_s).mean()) == pytest.approx(
        queue.within(qps, limit_s), abs=0.012
    )


def test_erlangs_formula_at_its_edges() -> None:
    assert md1_wait(0.5, 1.0, 0.0) == pytest.approx(0.5)
    assert md1_wait(0.5, 1.0, 15.0) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("queue", "sla", "share"),
    [(Queue(), "e2e_p90=6000", 0.9), (Queue(exponential=False), "ttft_p90=3500", 0.9)],
)
def test_the_true_rate_is_found(queue: Queue, sla: str, share: float) -> None:
    true = queue.sustainable(share, read_sla([sla]).limits[0].ms / 1000)
    errors = []
    for seed in range(4):
        budget = Budget(requests=8000, repeats=8, tolerance=0.02, seed=1000 * seed, **ENDLESS)
        found = Search(queue, read_sla([sla]), budget).run()
        assert found.qps is not None
        assert found.binding == sla.partition("=")[0]
        errors.append(found.qps / true - 1)
    assert sum(abs(error) <= 0.03 for error in errors) >= 3
    assert max(abs(error) for error in errors) < 0.06


def test_without_a_limit_that_breaks_the_capacity_ends_it() -> None:
    budget = Budget(requests=4000, repeats=3, **ENDLESS)
    found = Search(Queue(), read_sla(["e2e_p50=10000000"]), budget).run()
    assert found.qps is not None
    assert found.binding == "rate"
    # 3 % less may come back than was offered, and still count.
    assert 0.85 < found.qps < 1.04


def test_what_never_settles_has_no_rate() -> None:
    budget = Budget(requests=300, repeats=3, seconds=1e9)
    found = Search(Aging(0.003), read_sla(["e2e_p90=1000000"]), budget).run()
    assert found.qps is None
    assert "no rate" in found.why


def test_a_limit_that_no_rate_holds() -> None:
    found = Search(Queue(), read_sla(["e2e_p90=1000"]), Budget(requests=300, seconds=1e9)).run()
    assert found.qps is None
    assert "e2e" in found.why.lower()


def test_seeds_are_the_same_for_every_system() -> None:
    asked: list[tuple[float, int]] = []

    def noted(qps: float, window: Window, seconds: float, seed: int) -> Measured:
        asked.append((qps, seed))
        return Queue()(qps, window, seconds, seed)

    Search(noted, read_sla(["e2e_p90=6000"]), Budget(requests=500, repeats=4, seed=7, **ENDLESS)).run(0.5)
    by_rate: dict[float, list[int]] = {}
    for qps, seed in asked[1:]:
        by_rate.setdefault(qps, []).append(seed)
    assert all(seeds[:4] == list(range(7, 7 + len(seeds[:4]))) for seeds in by_rate.values())


def test_the_budget_ends_it_and_says_so() -> None:
    found = Search(Queue(), read_sla(["e2e_p90=6000"]), Budget(requests=3000, repeats=8, seconds=6000)).run()
    assert "budget" in found.why
    assert found.seconds < 20000


def test_a_client_that_lags_is_named() -> None:
    def late(qps: float, window: Window, seconds: float, seed: int) -> Measured:
        run = Queue(mean_s=0.01)(qps, window, seconds, seed)
        by = 0.5 if qps > 20 else 0.0
        return Measured(run.planned, run.sent + by, run.first + by, run.last + by, run.tokens)

    found = Search(late, read_sla(["e2e_p90=10000"]), Budget(requests=500, repeats=2, seconds=1e6)).run(5.0)
    assert found.binding == "client"
    assert found.qps is not None
    assert found.qps <= 20
    # It bounds the client and not what serves.
    assert found.high is None
    assert "what serves may hold more" in found.why
    assert found.shown == f">= {found.qps:.4g}"


def test_an_endpoint_that_answers_nothing_is_named() -> None:
    def dead(*_asked: object) -> Measured:
        nothing = np.full(3, np.nan)
        at = np.arange(3.0)
        return Measured(at, at, nothing, nothing, np.zeros(3), ("connection refused",) * 3)

    with pytest.raises(WorkloadError, match="connection refused"):
        Search(dead, read_sla(["e2e_p90=10000"]), Budget()).run()


def test_points_say_how_they_were_made() -> None:
    seen: list[Tried] = []
    budget = Budget(requests=2000, repeats=2, **ENDLESS)
    Search(Queue(), read_sla(["e2e_p90=6000"]), budget, lambda one, _spent: seen.append(one)).run()
    unsteady = [one.point for one in seen if not one.steady]
    assert all(one.unsteady for one in unsteady)
    full = [one.point for one in seen if one.steady and not one.quick]
    assert full
    for one in full:
        assert one.requests is not None and one.requests >= 2000
        assert set(one.attained) == {"e2e_p90"}
