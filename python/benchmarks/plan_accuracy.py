"""How far the planner's predictions are from measured curves that it was not fitted to.

usage: python python/benchmarks/plan_accuracy.py [CURVES.json ...]

Three fits on the measurements that come with the package: H200 on `4agg` and `2p2d` of each of two workloads
in turn, tested on all other curves; MI325X on `1p1d` and `2agg`, tested on `2p1d`. Files named on the command
line are further curves of the H200 system, tested only. Each run is simulated over the very window that was
measured, with 20 drawings of its arrivals. Points that did not keep up with their rate are shown and not
counted: their figures tell how long they ran. Prints Markdown: every error with the noise that one such run
has by its arrivals alone, mean errors, and for each SLA the goodput by the same interpolation of measured and
of predicted points.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import Any

from splitrail.plan.fit import calibrate, compare, overloaded, samples
from splitrail.plan.system import Model
from splitrail.workload import Curve, Curves, Layout, load_curves, read_sla

SLAS = {
    8000: [
        ["tpot_p50=12"],
        ["tpot_p50=15"],
        ["tpot_p50=20"],
        ["tpot_p90=20"],
        ["ttft_p90=1000"],
        ["ttft_p90=2000"],
        ["ttft_p90=1000", "tpot_p90=30"],
        ["ttft_p50=600", "tpot_p50=25"],
    ],
    2000: [
        ["tpot_p50=12"],
        ["tpot_p50=14"],
        ["tpot_p90=15"],
        ["tpot_p50=16"],
        ["ttft_p90=400"],
        ["ttft_p90=1000"],
        ["ttft_p90=400", "tpot_p90=16"],
    ],
    16000: [["tpot_mean=20"], ["tpot_mean=25"], ["tpot_mean=35"], ["ttft_mean=1000", "tpot_mean=30"]],
}
WIDE = 0.10


def crossing(points: Sequence[tuple[float, dict[str, float]]], limits: dict[str, float]) -> tuple[float, str]:
    """The rate up to which all limits hold, and whether it is that rate or only a bound (``<`` or ``>``).

    Between two points a figure is taken to go by a power of the rate.
    """
    found, sign = float("inf"), ">"
    for key, limit in limits.items():
        before: tuple[float, float] | None = None
        for qps, figures in points:
            value = figures[key]
            if value > limit:
                if before is None:
                    rate, bound = qps, "<"
                else:
                    share = log(limit / before[1]) / log(value / before[1])
                    rate, bound = exp(log(before[0]) + share * log(qps / before[0])), "="
                if rate < found:
                    found, sign = rate, bound
                break
            before = (qps, value)
    return (points[-1][0], ">") if sign == ">" else (found, sign)


def report(title: str, model: Model, curves: Sequence[Curve], trained: Sequence[str]) -> None:
    """Print one fit's tables."""
    say(f"\n## {title}\n")
    step = next(iter(model.steps.values()))
    say(f"step: {step.model_dump()}  \ntransfer: {model.transfer.model_dump()}  ")
    say(f"overhead: {1000 * model.overhead_s:.1f} ms\n")
    say(
        "| curve | qps | figure | measured ms | predicted ms | error | one run's noise | |\n|---|"
        + "---|" * 7
    )
    errors: dict[tuple[str, str], list[float]] = {}
    seen: dict[str, dict[str, Any]] = {}
    for curve in curves:
        name = f"{curve.layout} {curve.workload.label}"
        for sample in samples([curve]):
            use = "fit" if name in trained else "test"
            if overloaded(sample.measured):
                use = "overloaded"
            row = compare(model, sample)
            figures: dict[str, dict[str, float]] = row["figures"]  # type: ignore[assignment]
            place = seen.setdefault(curve.workload.label, {}).setdefault(curve.layout, [])
            place.append((sample.measured.qps, figures))
            for key, value in figures.items():
                errors.setdefault((use, key), []).append(abs(value["error"]))
                errors.setdefault((use, "noise of " + key), []).append(value["noise"])
                say(
                    f"| {name} | {sample.measured.qps:g} | {key} | {value['measured']:g} | "
                    f"{value['predicted']:g} | {value['error']:+.1%} | {value['noise']:.1%} | {use} |"
                )
    say("\n| curves | figure | points | mean error | median error | largest |\n|---|---|---|---|---|---|")
    for (use, key), values in sorted(errors.items()):
        ordered = sorted(values)
        say(
            f"| {use} | {key} | {len(values)} | {sum(values) / len(values):.1%} | "
            f"{ordered[len(ordered) // 2]:.1%} | {ordered[-1]:.1%} |"
        )
    for curve_set, layouts in seen.items():
        goodputs(curve_set, layouts, trained)


def goodputs(workload: str, layouts: dict[str, Any], trained: Sequence[str]) -> None:
    """Print goodput under several SLAs, measured and predicted, and whether the winner is right."""
    say(f"\n### Goodput, {workload}: requests a second a GPU, measured / predicted\n")
    names = sorted(layouts)
    say("| SLA | " + " | ".join(names) + " | winner measured | margin | predicted |")
    say("|---" * (len(names) + 4) + "|")
    errors = []
    for texts in SLAS[int(float(workload.split("/", maxsplit=1)[0]))]:
        limits = {limit.key: limit.ms for limit in read_sla(texts).limits}
        cells, rates = [], {}
        for name in names:
            both = {}
            for side in ("measured", "predicted"):
                points = [(qps, {k: v[side] for k, v in f.items()}) for qps, f in layouts[name]]
                rate, sign = crossing(points, limits)
                both[side] = (rate / Layout.read(name).gpus, sign)
            (m, ms), (p, ps) = both["measured"], both["predicted"]
            rates[name] = both
            cells.append(f"{ms if ms != '=' else ''}{m:.3g} / {ps if ps != '=' else ''}{p:.3g}")
            if ms == ps == "=" and f"{name} {workload}" not in trained:
                errors.append(abs(p / m - 1))
        say(f"| {', '.join(texts)} | {' | '.join(cells)} | {_winner(rates)} |")
    if errors:
        say(f"\nmean error of {len(errors)} tested goodputs: {sum(errors) / len(errors):.1%}")


def _winner(rates: dict[str, dict[str, tuple[float, str]]]) -> str:
    """Who wins by measurement, by how much at least, and who by prediction. A bound wins only where it
    suffices.
    """
    order = sorted(rates, key=lambda name: -rates[name]["measured"][0])
    best, second = order[0], order[1]
    (top, sign), (next_, sign2) = rates[best]["measured"], rates[second]["measured"]
    if sign == "<" or sign2 == ">":
        return "not decided | | "
    margin = top / next_ - 1
    said = max(rates, key=lambda name: rates[name]["predicted"][0])
    right = "right" if said == best else "WRONG" if margin > WIDE else "wrong, under 10 %"
    return f"{best} | {margin:.0%} | {said}: {right}"


def fit_and_report(
    title: str, curves: Curves, layouts: Sequence[str], isl: float, more: Sequence[Curve]
) -> None:
    """Fit to some layouts under one workload, report on all."""
    chosen = [curve for curve in curves.curves if curve.workload.isl.mean == isl]
    model = calibrate(curves.model_copy(update={"curves": tuple(chosen)}), layouts)
    report(title, model, [*curves.curves, *more], model.fitted_to)


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")


def main() -> int:
    """Run the three fits."""
    data = files("splitrail.plan") / "data"
    more = [curve for name in sys.argv[1:] for curve in load_curves(Path(name)).curves]
    h200 = load_curves(Path(str(data / "h200-qwen3-14b.json")))
    for isl, name in ((8000, "8000/512"), (2000, "2000/1000")):
        fit_and_report(f"H200, fitted to 4agg and 2p2d of {name}", h200, ["4agg", "2p2d"], isl, more)
    mi325x = load_curves(Path(str(data / "mi325x-qwen3-235b.json")))
    fit_and_report("MI325X, fitted to 1p1d and 2agg", mi325x, ["1p1d-tp8", "2agg-tp8"], 16000, [])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
