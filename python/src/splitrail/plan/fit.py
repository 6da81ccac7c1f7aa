"""Fit the step model to measured curves: least squares over what the simulator says clients would have seen.

Every coefficient starts from what the model's dimensions and the GPU's data sheet say, and is held there as
firmly as that is known: a few points of one workload cannot tell all coefficients apart, and what they leave
open should stay physical. Residuals and priors are in logarithms, so 10 % counts alike for 10 ms and for 10
s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from splitrail.plan.descend import descend
from splitrail.plan.simulate import Run, point, replay, simulate, traffic
from splitrail.plan.step import Step, Transfer
from splitrail.plan.system import Model, System, fleet, weights_seconds
from splitrail.workload import Curve, Curves, Layout, Point, Window, Workload, WorkloadError

SEEDS = 5
NOISE_SEEDS = 20
# What a model of this form misses even without noise, as a standard deviation of a logarithm.
MODEL_ERROR = 0.05
# Of the offered rate: under it a point did not keep up.
KEPT_UP = 0.9
# Posting a transfer of 90 descriptors took 1.0 ms where 40,000 took 136 ms: 0.7 ms are not the descriptors'.
POST_S = 7e-4
# A window that the file does not give: long enough that one run says something.
DEFAULT_WINDOW = Window(seconds=60, drop_s=10)


@dataclass(frozen=True)
class Prior:
    """A coefficient before measuring: its best guess, and the standard deviation of its logarithm."""

    guess: float
    spread: float


@dataclass(frozen=True)
class Sample:
    """One measured point and how to see it again."""

    layout: Layout
    workload: Workload
    window: Window
    measured: Point


def overloaded(measured: Point) -> bool:
    """Whether a point is known not to have kept up: its figures then tell how long it ran, not how fast it
    is.
    """
    return measured.achieved_qps is not None and measured.achieved_qps < KEPT_UP * measured.qps


def samples(curves: Sequence[Curve]) -> list[Sample]:
    """All points of measured curves."""
    return [
        Sample(Layout.read(curve.layout), curve.workload, curve.window or DEFAULT_WINDOW, measured)
        for curve in curves
        if curve.kind == "measured"
        for measured in curve.points
    ]


def priors(system: System) -> dict[str, Prior]:
    """What data sheet and dimensions say of each coefficient, and how far off that may be.

    Efficiencies are usual ones: 50 % of the data sheet's FLOP, 80 % of its memory bandwidth. The attention
    term is relative to the linear one (both move with the GPU's real rate), the mixed one relative to reading
    contexts.
    """
    shape, gpu, tp = system.model, system.gpu, system.tp
    rate = 0.5 * gpu.tflops * 1e12 * tp
    bandwidth = 0.8 * gpu.memory_gb_per_s * 1e9
    heads_held = max(shape.kv_heads / tp, 1.0)
    # What a layer costs however small the batch: its launches, and where it is split two all-reduces.
    kernels = 1e-5 if tp == 1 else 6e-5
    found = {
        "step_s": Prior(weights_seconds(system, tp) / 0.8 + 1e-3 + kernels * shape.layers, 0.6),
        "token_s": Prior(shape.flops / rate, 1.0),
        "attention_ratio": Prior(1.25 * shape.attention_flops / shape.flops, 0.3),
        "sequence_s": Prior(2e-5, 1.0),
        "context_s": Prior(shape.kv_bytes * heads_held / shape.kv_heads / bandwidth, 0.3),
        "mixed_ratio": Prior(3.0, 0.7),
        "overhead_s": Prior(1e-2, 0.7),
        # A further request through HTTP; the decode engine's own steps are the simulator's.
        "handoff_s": Prior(1.5e-2, 0.7),
        # An RDMA work request costs the host under a microsecond, a cudaMemcpyAsync a few.
        "descriptor_s": Prior(1.5e-6, 1.0),
        "bytes_per_s": Prior(0.9e9 * system.link_gb_per_s, 1.0),
    }
    if system.post_us_per_descriptor is not None:
        found["descriptor_s"] = Prior(1e-6 * system.post_us_per_descriptor, 0.15)
    if shape.experts > 1:
        experts = shape.expert_weights * shape.bytes_per_weight / tp / bandwidth
        found["experts_s"] = Prior(experts, 0.7)
    return found


def assemble(system: System, values: dict[str, float]) -> Model:
    """A model with these coefficients."""
    step = Step(
        step_s=values["step_s"],
        token_s=values["token_s"],
        attention_s=values["token_s"] * values["attention_ratio"],
        sequence_s=values["sequence_s"],
        context_s=values["context_s"],
        mixed_context_s=values["context_s"] * values["mixed_ratio"],
        experts_s=values.get("experts_s", 0.0),
        routed_share=system.model.routed_share,
    )
    transfer = Transfer(
        post_s=POST_S,
        descriptor_s=values["descriptor_s"],
        descriptors_per_block=system.descriptors_per_block,
        bytes_per_s=values["bytes_per_s"],
        bytes_per_token=system.model.kv_bytes,
        handoff_s=values["handoff_s"],
    )
    return Model(system=system, steps={system.tp: step}, transfer=transfer, overhead_s=values["overhead_s"])


def predict(model: Model, sample: Sample, seeds: int = SEEDS) -> list[Point]:
    """The same window under as many drawings of arrivals."""
    workload = sample.workload
    fixed = workload.arrival_cv == 0 or sample.measured.sent_s
    chosen_by_chance = model.system.balancing in ("least-outstanding-random", "two-choices")
    if fixed and workload.isl.cv == workload.osl.cv == 0 and not chosen_by_chance:
        seeds = 1  # nothing is drawn
    return [_once(model, sample, seed) for seed in range(seeds)]


def _once(model: Model, sample: Sample, seed: int) -> Point:
    measured, window = sample.measured, sample.window
    if measured.descriptors is not None:
        blocks = sample.workload.isl.mean / model.settings("decode", model.system.tp).block_size
        merged = {"descriptors_per_block": measured.descriptors / blocks}
        model = model.model_copy(update={"transfer": model.transfer.model_copy(update=merged)})
    if measured.sent_s:
        requests = replay(sample.workload, measured.sent_s, seed)
        window = window.model_copy(update={"drop_s": measured.sent_s[0] + window.drop_s})
    else:
        requests = traffic(sample.workload, measured.qps, window, seed)
    run: Run = simulate(fleet(sample.layout, model), requests, seed=seed)
    return point(run, measured.qps, window)


def figures(points: Sequence[Point], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds of each figure's logarithm, and the covariance of the logarithms in one run."""
    table = np.array([[log(seen.value(key) or 1e-9) for key in keys] for seen in points])
    if len(points) == 1:
        return table[0], np.zeros((len(keys), len(keys)))
    return table.mean(axis=0), np.atleast_2d(np.cov(table, rowvar=False))


def whitening(covariance: np.ndarray) -> np.ndarray:
    """The matrix that makes residuals of one point independent and of unit size.

    A burst in one run lifts all its figures at once: that is one deviation, not four.
    """
    whole = covariance + MODEL_ERROR**2 * np.eye(len(covariance))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(whole)))


def calibrate(curves: Curves, only: Sequence[str] | None = None) -> Model:
    """Fit to the measured curves, or to those of the layouts in ``only``. Deterministic.

    Raises WorkloadError where the file lacks a system or measured points.
    """
    if not curves.system:
        raise WorkloadError(
            "the file has no `system`: calibrate needs the GPU, the model's dimensions and settings"
        )
    system = System.model_validate(curves.system)
    wanted = [curve for curve in curves.curves if only is None or curve.layout in only]
    known = [sample for sample in samples(wanted) if not overloaded(sample.measured)]
    if not known:
        raise WorkloadError("no measured point to fit to")
    before = priors(system)
    if not any(sample.layout.mode == "pd" for sample in known):
        # Nothing measured says anything about transfers: they stay at their guess.
        for name in ("handoff_s", "descriptor_s", "bytes_per_s"):
            before[name] = Prior(before[name].guess, 1e-3)
    names = list(before)
    guess = np.array([log(before[name].guess) for name in names])
    spread = np.array([before[name].spread for name in names])
    at = guess.copy()

    def model_at(x: np.ndarray) -> Model:
        return assemble(system, {name: exp(value) for name, value in zip(names, x, strict=True)})

    keys = [list(sample.measured.figures) for sample in known]
    measured = [np.log(list(sample.measured.figures.values())) for sample in known]
    # First to the neighbourhood; then a point that was measured badly must not pull the rest along.
    for robust in (False, True):
        now = model_at(at)
        weights = [
            whitening(figures(predict(now, s, NOISE_SEEDS), k)[1]) for s, k in zip(known, keys, strict=True)
        ]

        def residuals(x: np.ndarray, weights: list[np.ndarray] = weights) -> np.ndarray:
            model = model_at(x)
            parts = [
                w @ (figures(predict(model, s), k)[0] - m)
                for s, k, m, w in zip(known, keys, measured, weights, strict=True)
            ]
            return np.concatenate([*parts, (x - guess) / spread])

        at = descend(residuals, at, robust=robust)
    model = model_at(at)
    return model.model_copy(
        update={
            "fitted_to": tuple(f"{curve.layout} {curve.workload.label}" for curve in wanted),
            "residuals": {"points": [compare(model, sample) for sample in known]},
        }
    )


def compare(model: Model, sample: Sample) -> dict[str, object]:
    """A point as measured and as predicted, in ms, with the relative error and the noise of one such run."""
    keys = list(sample.measured.figures)
    middle, covariance = figures(predict(model, sample, NOISE_SEEDS), keys)
    noise = np.sqrt(np.diag(covariance))
    measured = sample.measured.figures
    return {
        "layout": sample.layout.label,
        "workload": sample.workload.label,
        "qps": sample.measured.qps,
        "figures": {
            key: {
                "measured": measured[key],
                "predicted": round(float(np.exp(value)), 2),
                "error": round(float(np.exp(value)) / measured[key] - 1, 4),
                "noise": round(float(sigma), 4),
            }
            for key, value, sigma in zip(keys, middle, noise, strict=True)
        },
    }
