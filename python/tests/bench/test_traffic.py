"""Traffic is drawn alike for every system, and prompts share what they are said to share."""

from __future__ import annotations

import numpy as np
import pytest

from splitrail.bench.traffic import draw, paced, tokens, warm_prefixes
from splitrail.workload import Lengths, Workload

PLAIN = Workload(isl=Lengths(mean=200), osl=Lengths(mean=16))


def test_one_seed_draws_the_same_lengths_and_scaled_gaps_at_any_rate() -> None:
    varied = Workload(isl=Lengths(mean=200, cv=0.5), osl=Lengths(mean=16, cv=0.5))
    slow, fast = draw(varied, 1.0, 1000, 3), draw(varied, 2.0, 500, 3)
    assert [one.isl for one in slow.requests] == [one.isl for one in fast.requests]
    assert np.allclose([one.at_s for one in slow.requests], [2 * one.at_s for one in fast.requests])
    assert [one.isl for one in draw(varied, 1.0, 1000, 4).requests] != [one.isl for one in slow.requests]


def test_the_window_gets_as_many_requests_as_the_rate_says() -> None:
    traffic = draw(PLAIN, 3.0, 120, 0, even_from_s=20)
    at = np.array([one.at_s for one in traffic.requests])
    assert (at < 20).sum() == 60
    assert (at >= 20).sum() == 300


def test_nothing_is_shared_without_a_hit_rate() -> None:
    traffic = draw(PLAIN, 5.0, 20, 0)
    first, second = (tokens(traffic, one) for one in traffic.requests[:2])
    assert len(first) == len(second) == 200
    assert first[:16] != second[:16]
    assert not list(warm_prefixes(traffic))


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_the_hit_rate_is_the_share_of_tokens_that_others_share(rate: float) -> None:
    traffic = draw(Workload(isl=Lengths(mean=4000), osl=Lengths(mean=8), hit_rate=rate), 10.0, 60, 0)
    shared = [
        sum(1 for name in one.blocks if name < 8 * 63) * traffic.block / one.isl for one in traffic.requests
    ]
    assert np.mean(shared) == pytest.approx(rate, abs=0.01)
    one, other = [
        tokens(traffic, r) for r in traffic.requests if r.blocks[0] == traffic.requests[0].blocks[0]
    ][:2]
    known = round(4000 * rate / traffic.block) * traffic.block
    assert one[:known] == other[:known]
    assert one[known : known + 16] != other[known : known + 16]
    # Each prefix once, so that the caches know all of them before anything counts.
    assert len(list(warm_prefixes(traffic))) == 8


def test_a_second_run_shares_nothing_with_the_first() -> None:
    one, other = draw(PLAIN, 5.0, 5, 0), draw(PLAIN, 5.0, 5, 0)
    assert tokens(one, one.requests[0]) != tokens(other, other.requests[0])


def test_shards_are_the_whole() -> None:
    traffic = draw(PLAIN, 5.0, 20, 0)
    parts = [traffic.shard(index, 3).requests for index in range(3)]
    assert sorted(one.at_s for part in parts for one in part) == [one.at_s for one in traffic.requests]


def test_recorded_requests_are_scaled_to_a_rate() -> None:
    recorded = draw(PLAIN, 1.0, 100, 0).requests
    at = [one.at_s for one in paced(recorded, 200, 4.0).requests]
    assert (len(at) - 1) / (at[-1] - at[0]) == pytest.approx(4.0)
