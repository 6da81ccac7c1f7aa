"""The search finds the rate that theory gives, counts only steady runs, and names what ends the rate."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest

from splitrail.plan.goodput import capacity, goodput, lifetime, probe, rises
from splitrail.plan.step import Step
from splitrail.workload import read_sla
from tests.plan.conftest import SETTINGS, STEP, aggregated, split, workload

SERVER = Step(step_s=0.0, token_s=1e-4)
ONE_AT_A_TIME = SETTINGS.model_copy(update={"max_num_batched_tokens": 1000})


def test_mean_wait_of_md1_is_found_within_five_percent() -> None:
    # M/D/1 with service 0.1 s: a mean TTFT of 0.2 s is a load of 2/3.
    fleet = aggregated(1, SERVER, ONE_AT_A_TIME)
    rates = [goodput(fleet, workload(1000, 1), read_sla(["ttft_mean=200"]), seed).qps for seed in range(5)]
    # Short runs scatter; their middle does not.
    assert sorted(rates)[2] == pytest.approx(20 / 3, rel=0.12)


@pytest.mark.parametrize("load", [1.1, 1.3])
def test_an_overloaded_run_never_counts(load: float) -> None:
    # Nobody would notice by TPOT: answers are single tokens. The queue still grows.
    fleet, work = aggregated(1, SERVER, ONE_AT_A_TIME), workload(1000, 1)
    loose = read_sla(["tpot_p50=1000"])
    assert not probe(fleet, work, loose, 10 * load, seed=0, lasting=5).ok
    assert probe(fleet, work, loose, 7, seed=0, lasting=5).ok


def test_without_a_biting_limit_the_rate_ends_at_capacity() -> None:
    fleet, work = aggregated(1, SERVER, ONE_AT_A_TIME), workload(1000, 1)
    found = goodput(fleet, work, read_sla(["tpot_p50=1000"]))
    assert capacity(fleet, work) == pytest.approx(10)
    assert 8.5 < found.qps < 10.6
    assert found.binding == "rate"


def test_a_limit_under_the_floor_gives_no_rate_and_is_named() -> None:
    found = goodput(split(2, 2), workload(), read_sla(["ttft_p90=400", "tpot_p90=30"]))
    assert (found.qps, found.binding) == (0.0, "ttft_p90")


def test_more_engines_never_sustain_less() -> None:
    sla = read_sla(["ttft_p90=1500", "tpot_p90=25"])
    rates = [goodput(aggregated(n), workload(), sla).qps for n in (1, 2, 4, 8)]
    assert all(more > 1.8 * less for less, more in pairwise(rates))
    grown = [goodput(split(2, d), workload(), sla).qps for d in (1, 2, 3, 4)]
    assert all(more >= 0.97 * less for less, more in pairwise(grown))


def test_a_looser_sla_never_sustains_less() -> None:
    rates = [
        goodput(aggregated(4), workload(), read_sla([f"tpot_p90={ms}"])).qps for ms in (13, 16, 20, 30, 50)
    ]
    assert rates == sorted(rates)


@pytest.mark.parametrize(("prefill", "decode", "pool"), [(1, 7, "prefill"), (7, 1, "decode")])
def test_the_pool_that_ends_the_rate_is_named(prefill: int, decode: int, pool: str) -> None:
    found = goodput(split(prefill, decode), workload(), read_sla(["ttft_p90=2000", "tpot_p90=25"]))
    assert found.pool == pool
    assert found.above is not None and not found.above.ok


def test_lifetime_follows_the_sla() -> None:
    loose = lifetime(aggregated(), workload(8000, 500), read_sla(["tpot_p90=40"]))
    assert loose == pytest.approx(STEP.prompt_seconds(8000) + 500 * 0.04)


def test_a_line_that_rises_is_told_from_one_that_wanders() -> None:
    assert rises([1, 1.1, 1.22, 1.3, 1.41, 1.5, 1.61, 1.7], 0.1)
    assert not rises([1, 1.4, 0.9, 1.3, 0.8, 1.5, 1.0, 1.2], 0.1)
    assert not rises([1, 1.001, 1.002, 1.003, 1.004, 1.005, 1.006, 1.007], 0.1)
    assert not rises([log(n) for n in range(2, 6)], 0.1)  # too few to say
