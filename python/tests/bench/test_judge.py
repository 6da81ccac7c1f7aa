"""Limits are judged with the certainty that the requests give."""

from __future__ import annotations

import numpy as np
import pytest

from splitrail.bench.judge import effective, judge, wilson
from splitrail.bench.queues import Queue
from splitrail.workload import Limit, Window, read_sla


def limit(text: str) -> Limit:
    return read_sla([text]).limits[0]


def test_wilson_is_the_published_interval() -> None:
    # 81 of 263: 0.255 to 0.366 (R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3).
    low, high = wilson(81 / 263, 263)
    assert low == pytest.approx(0.2553, abs=2e-4)
    assert high == pytest.approx(0.3662, abs=2e-4)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(1.0, 20)[1] == 1.0


def test_many_requests_make_it_sure_and_few_do_not() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, 20000)
    p90 = 1000 * float(np.log(10))
    held, broken = (judge(limit(f"e2e_p90={p90 * by:.3f}"), [values]) for by in (1.1, 0.9))
    assert (held.holds, held.sure) == (True, True)
    assert (broken.holds, broken.sure) == (False, True)
    few = judge(limit(f"e2e_p90={p90 * 1.1:.3f}"), [values[:60]])
    assert not few.sure
    assert few.attained is not None
    assert few.attained.low < 0.9 < few.attained.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    queue, window = Queue(), Window(seconds=8000, drop_s=400)
    true = queue.within(0.7, 8.0)
    within = 0
    for seed in range(60):
        run = queue(0.7, window, 8000, seed).within(window)
        found = judge(limit("e2e_p90=8000"), [run.seconds("e2e")]).attained
        assert found is not None
        within += found.low <= true <= found.high
    assert within >= 50  # of 57 expected


def test_neighbours_in_a_queue_count_for_less_than_one() -> None:
    run = Queue()(0.8, Window(seconds=8000), 8000, 0)
    within = run.seconds("e2e") <= 8.0
    assert effective([within]) < len(within) / 5
    shuffled = np.random.default_rng(0).permutation(within)
    assert effective([shuffled]) > len(within) / 3


def test_failures_break_a_percentile_that_they_reach() -> None:
    values = np.array([0.1] * 95 + [np.inf] * 5)
    assert judge(limit("e2e_p90=200"), [values]).holds
    assert not judge(limit("e2e_p99=200"), [values]).holds


def test_a_mean_is_judged_by_its_batches() -> None:
    values = np.random.default_rng(0).exponential(1.0, 4000)
    assert judge(limit("tpot_mean=1200"), [values]) == judge(limit("tpot_mean=1200"), [values])
    sure, unsure = judge(limit("tpot_mean=1200"), [values]), judge(limit("tpot_mean=1005"), [values])
    assert (sure.holds, sure.sure) == (True, True)
    assert not unsure.sure
    assert not judge(limit("tpot_mean=800"), [values]).holds
