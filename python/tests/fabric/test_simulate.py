"""The simulated fleet is measured whole, and its time is that of its rounds."""

from __future__ import annotations

from splitrail.fabric.mesh_checks import judge
from splitrail.fabric.simulate import least_s, simulate, walked_s
from splitrail.fabric.thresholds import load


def test_every_way_is_measured_and_judged() -> None:
    timing = simulate(6, 8, 0.0)
    assert len(timing.result.readings) == 6 * 5 * 8
    assert len(timing.rounds_s) == 5
    faults = judge(timing.result, load()).faults
    assert faults == []


def test_pairs_of_a_round_and_their_rails_run_side_by_side() -> None:
    timing = simulate(4, 8, 0.8)
    assert 3 * 0.8 <= sum(timing.rounds_s) < 2 * 3 * 0.8


def test_the_arithmetic_of_the_benchmark() -> None:
    assert least_s(64, 5) == 63 * 5
    assert walked_s(64, 8, 5) / 3600 == 22.4
