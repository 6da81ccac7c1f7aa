"""Histograms: Prometheus' own rule for quantiles, resets, and sums that are only known between bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrail.metrics.histogram import Histogram, Spread, merged


def of(
    *counts: float, bounds: tuple[float, ...] = (0.1, 0.5, 1.0, math.inf), total: float | None = None
) -> Histogram:
    return Histogram(bounds, counts, total)


def test_a_quantile_is_found_by_prometheus_rule() -> None:
    """As histogram_quantile gives for 10 in (0, 0.1], 10 in (0.1, 0.5]: worked out by hand."""
    seen = of(10, 10, 0, 0)
    assert seen.quantile(0.25) == pytest.approx(0.05)
    assert seen.quantile(0.5) == pytest.approx(0.1)
    assert seen.quantile(0.75) == pytest.approx(0.3)
    assert seen.quantile(1.0) == pytest.approx(0.5)


def test_beyond_the_last_bound_a_quantile_is_that_bound() -> None:
    assert of(1, 0, 0, 9).quantile(0.9) == 1.0


def test_without_observations_there_is_no_quantile_and_no_mean() -> None:
    assert of(0, 0, 0, 0).quantile(0.5) is None
    assert of(0, 0, 0, 0).mean() is None
    assert merged([]).quantile(0.9) is None


def test_growth_and_a_reset() -> None:
    before, after = of(5, 5, 0, 0), of(6, 9, 0, 0)
    assert after.since(before).counts == (1, 4, 0, 0)
    restarted = of(1, 0, 0, 0)
    assert restarted.since(before).counts == restarted.counts


def test_growth_of_an_exact_sum() -> None:
    assert of(2, 0, 0, 0, total=0.3).since(of(1, 0, 0, 0, total=0.1)).total == pytest.approx(0.2)


def test_buckets_must_agree_to_be_added() -> None:
    with pytest.raises(ValueError, match="different buckets"):
        of(1, 0, 0, 0).plus(Histogram((2.0, math.inf), (1, 0), None))


def test_a_histogram_has_an_infinite_bucket() -> None:
    with pytest.raises(ValueError, match=r"\+Inf"):
        Histogram.of({0.1: 1.0}, None)


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=40))
def test_a_sum_lies_between_its_bounds(values: list[float]) -> None:
    bounds = (0.1, 0.5, 1.0, math.inf)
    seen = Histogram.of({bound: float(sum(value <= bound for value in values)) for bound in bounds}, None)
    assert seen.sum().low - 1e-9 <= sum(values) <= seen.sum().high + 1e-9
    assert not seen.sum().exact


def test_an_overflow_leaves_the_upper_bound_open() -> None:
    assert of(0, 0, 0, 1).sum() == Spread(1.0, math.inf)


def test_spreads_divide_the_careful_way() -> None:
    assert Spread(2, 4).over(Spread(1, 2)) == Spread(1, 4)
    assert Spread(2, 4).over(Spread(0, 2)) == Spread(1, math.inf)
    assert Spread(2, 4).text() == "2 to 4"
    assert Spread(2, math.inf).text() == "2 or more"
    assert Spread(2, 2).text() == "2"
    assert Spread(0, 4).text() == "up to 4"
