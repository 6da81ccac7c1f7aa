"""Calibration recovers what made the points, and says so where it cannot know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import splitrail.plan
from splitrail.plan import fit
from splitrail.plan.fit import Sample, calibrate, overloaded, predict, priors, samples, whitening
from splitrail.plan.system import Model, scaled
from splitrail.workload import Curve, Curves, Layout, Point, Window, WorkloadError, load_curves
from tests.plan.conftest import workload

KEYS = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90")


def seen(model: Model, layout: str, rates: tuple[float, ...], seed: int = 11) -> Curve:
    """What a system like this would measure, in one run a point."""
    window = Window(seconds=25, drop_s=5)
    points = []
    for qps in rates:
        sample = Sample(Layout.read(layout), workload(4000, 256), window, Point(qps=qps))
        one = predict(model, sample, seed)[-1]
        points.append(
            Point(
                qps=qps,
                ttft={k: v for k, v in one.ttft.items() if k in {"p50", "p90"}},
                tpot={k: v for k, v in one.tpot.items() if k in {"p50", "p90"}},
            )
        )
    return Curve(
        kind="measured", layout=layout, workload=workload(4000, 256), window=window, points=tuple(points)
    )


def test_a_known_system_is_recovered(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer drawings than in earnest: what is looked for is not a percent.
    monkeypatch.setattr(fit, "SEEDS", 2)
    monkeypatch.setattr(fit, "NOISE_SEEDS", 5)
    curves = Curves(
        system=model.system.model_dump(),
        curves=(seen(model, "2agg", (0.5, 2, 4)), seen(model, "1p1d", (0.5, 1.5))),
    )
    fitted = calibrate(curves)
    held_out = Sample(Layout.read("3p1d"), workload(1000, 512), Window(seconds=25, drop_s=5), Point(qps=3))
    true, told = (predict(one, held_out, 5)[0] for one in (model, fitted))
    for key in KEYS:
        assert told.value(key) == pytest.approx(true.value(key), rel=0.15), key
    assert fitted.fitted_to == ("2agg 4000/256", "1p1d 4000/256")
    assert calibrate(curves, ["1p1d"]).fitted_to == ("1p1d 4000/256",)


def test_points_that_did_not_keep_up_are_not_fitted_to() -> None:
    assert overloaded(Point(qps=3, achieved_qps=1.9))
    assert not overloaded(Point(qps=3, achieved_qps=2.9))
    assert not overloaded(Point(qps=3))


def test_what_is_missing_is_named(model: Model) -> None:
    curve = Curve(kind="measured", layout="2agg", workload=workload(), points=(Point(qps=1),))
    with pytest.raises(WorkloadError, match="no `system`"):
        calibrate(Curves(curves=(curve,)))
    with pytest.raises(WorkloadError, match="no measured point"):
        calibrate(Curves(system=model.system.model_dump(), curves=(curve,)), ["1p1d"])


def test_priors_are_physical(model: Model) -> None:
    found = priors(model.system)
    # Reading 163,840 B of one token's cache at 80 % of 4.8 TB/s.
    assert found["context_s"].guess == pytest.approx(163_840 / 3.84e12)
    assert 5e-3 < found["step_s"].guess < 12e-3
    assert "experts_s" not in found


def test_one_burst_is_one_deviation() -> None:
    together = np.full((2, 2), 0.09)
    both = whitening(together) @ np.array([0.3, 0.3])
    # Both figures off by one common standard deviation: about one, not the square root of two.
    assert float(np.linalg.norm(both)) == pytest.approx(1, abs=0.05)


def test_more_gpus_split_the_work_and_not_the_host(model: Model) -> None:
    one, two = model.steps[1], scaled(model.steps[1], model.system, 1, 2)
    assert one.step_s / 2 < two.step_s < one.step_s
    assert one.token_s / 2 < two.token_s < one.token_s
    assert two.context_s == pytest.approx(one.context_s / 2)


@pytest.mark.parametrize("name", ["h200-qwen3-14b", "mi325x-qwen3-235b"])
def test_the_measurements_that_come_along_can_be_read(name: str) -> None:
    folder = Path(splitrail.plan.__file__).parent / "data"
    curves = load_curves(folder / f"{name}.json")
    assert samples(curves.curves)
    model = Model.model_validate_json((folder / f"{name}.model.json").read_text(encoding="utf-8"))
    assert model.system.model_dump() == type(model.system).model_validate(curves.system).model_dump()


def test_recorded_arrivals_are_replayed_and_merged_descriptors_believed(model: Model) -> None:
    layout, window = Layout.read("1p1d"), Window(seconds=30, drop_s=2)
    together = Point(qps=1, sent_s=(0.0, 5.0, 5.0, 20.0))
    one = predict(model, Sample(layout, workload(), window, together), 5)
    assert len(one) == 1  # nothing is left to draw
    assert one[0].requests == 3
    # The second of the two that came together waited for the first's prompt.
    assert one[0].ttft["p99"] - one[0].ttft["p50"] > 300
    merged = together.model_copy(update={"descriptors": 80.0})
    faster = predict(model, Sample(layout, workload(), window, merged), 1)[0]
    assert one[0].ttft["p50"] - faster.ttft["p50"] == pytest.approx(136 - 17.5, abs=12)
