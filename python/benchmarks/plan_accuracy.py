"""How far the planner's predictions are from measured curves that it was not fitted to.

usage: python python/benchmarks/plan_accuracy.py [CURVES.json ...]

Three fits on the measurements that come with the package: H200 on `4agg` and `2p2d` of each of two workloads
in turn, tested on all other curves and on a later session of the same GPUs (gpu_pd.h200.json); MI325X on
`1p1d` and `2agg`, tested on `2p1d`. Files named on the command line are further curves of the H200 system,
tested only. The later session is replayed: its client draws arrivals from a known seed, and the engines
counted the descriptors of transfers. Elsewhere the window is simulated with 20 drawings of its arrivals.

Points that did not keep up with their rate are shown and not counted: their figures tell how long they ran.
Prints Markdown: every error with the noise that one such run has by its arrivals alone, mean errors, and for
each SLA the goodput by the same interpolation of measured and of predicted points.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import Any

from splitrail.plan.fit import calibrate, compare, overloaded, samples
from splitrail.plan.system import Model, with_balancing, with_cross_layer_blocks
from splitrail.workload import (
    Curve,
    Curves,
    Layout,
    Lengths,
    Point,
    Window,
    Workload,
    load_curves,
    read_sla,
)

HERE = Path(__file__).parent
SLAS = {
    "8000/512": [
        ["tpot_p50=12"],
        ["tpot_p50=15"],
        ["tpot_p50=20"],
        ["tpot_p90=20"],
        ["ttft_p90=1000"],
        ["ttft_p90=2000"],
        ["ttft_p90=1000", "tpot_p90=30"],
        ["ttft_p50=600", "tpot_p50=25"],
    ],
    "2000/1000": [
        ["tpot_p50=12"],
        ["tpot_p50=14"],
        ["tpot_p90=15"],
        ["tpot_p50=16"],
        ["ttft_p90=400"],
        ["ttft_p90=1000"],
        ["ttft_p90=400", "tpot_p90=16"],
    ],
    "16000/256": [["tpot_p50=12"], ["tpot_p90=15"], ["tpot_p90=20"], ["ttft_p90=1500", "tpot_p90=20"]],
    "16000/1024": [["tpot_mean=20"], ["tpot_mean=25"], ["tpot_mean=35"], ["ttft_mean=1000", "tpot_mean=30"]],
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


def later_session(model: Model) -> list[tuple[str, Curve, Model]]:
    """The curves of gpu_pd.h200.json, each with the model under the KV layout that it was measured with."""
    plan = json.loads((HERE / "gpu_pd.json").read_text(encoding="utf-8"))
    curves: dict[tuple[str, str, int, int], list[Point]] = {}
    for seen in json.loads((HERE / "gpu_pd.h200.json").read_text(encoding="utf-8"))["points"]:
        isl, osl, qps = seen["isl"], seen["osl"], seen["qps"]
        figures = {
            metric: {name: seen[metric][name] for name in ("p50", "p90")}
            for metric in ("ttft", "tpot", "e2e")
        }
        sent = tuple(arrivals(isl, osl, qps, plan))
        if sum(at >= sent[0] + plan["warm_s"] for at in sent) != seen["requests"]:
            raise ValueError(f"gpu_pd.h200.json, {isl}/{osl} at {qps}: not the arrivals that were measured")
        measured = Point(qps=qps, sent_s=sent, descriptors=seen["kv"].get("descriptors"), **figures)
        curves.setdefault((seen["layout"], seen["config"], isl, osl), []).append(measured)
    # Its client takes any of the engines with the fewest requests.
    model = with_balancing(model, "least-outstanding-random")
    layouts = {"suite": with_cross_layer_blocks(model), "default": model}
    return [
        (
            f"later, {layout} KV layout",
            Curve(
                kind="measured",
                layout=config,
                workload=Workload(isl=Lengths(mean=isl), osl=Lengths(mean=osl)),
                window=Window(seconds=plan["seconds"], drop_s=plan["warm_s"]),
                points=tuple(points),
            ),
            layouts[layout],
        )
        for (layout, config, isl, osl), points in curves.items()
    ]


def arrivals(isl: int, osl: int, qps: float, plan: dict[str, Any]) -> list[float]:
    """When gpu_pd.py sends: its generator draws a gap and then the prompt's tokens."""
    draw = random.Random(f"{ ({'isl': isl, 'osl': osl}) } {qps}")  # noqa: S311  # no secret
    sent = [0.0]
    while sent[-1] < plan["seconds"]:
        sent.append(sent[-1] + draw.expovariate(qps))
        for _ in range(isl):
            draw.randrange(10, plan["vocabulary"])
    return sent[1:]


def report(
    title: str, model: Model, entries: Sequence[tuple[str, Curve, Model]], trained: Sequence[str]
) -> None:
    """Print one fit's tables. An entry is the session's name, a curve, and the model to test with."""
    say(f"\n## {title}\n")
    step = next(iter(model.steps.values()))
    say(f"step: {step.model_dump()}  \ntransfer: {model.transfer.model_dump()}  ")
    say(f"overhead: {1000 * model.overhead_s:.1f} ms\n")
    say("| curve | qps | figure | measured ms | predicted ms | error | one run's noise | |")
    say("|---" * 8 + "|")
    errors: dict[tuple[str, str], list[float]] = {}
    seen: dict[str, dict[str, Any]] = {}
    for session, curve, tested in entries:
        name = f"{curve.layout} {curve.workload.label}"
        for sample in samples([curve]):
            use = session or ("fit" if name in trained else "test")
            if overloaded(sample.measured):
                use = "overloaded"
            row = compare(tested, sample)
            figures: dict[str, dict[str, float]] = row["figures"]  # type: ignore[assignment]
            group = f"{curve.workload.label} {session}".strip()
            place = seen.setdefault(group, {}).setdefault(curve.layout, [])
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
        if len(layouts) > 1:
            goodputs(curve_set, layouts, trained)


def goodputs(workload: str, layouts: dict[str, Any], trained: Sequence[str]) -> None:
    """Print goodput under several SLAs, measured and predicted, and whether the winner is right."""
    say(f"\n### Goodput, {workload}: requests a second a GPU, measured / predicted\n")
    names = sorted(layouts)
    say("| SLA | " + " | ".join(names) + " | winner measured | margin | predicted |")
    say("|---" * (len(names) + 4) + "|")
    errors = []
    for texts in SLAS[workload.split(" ", maxsplit=1)[0]]:
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
    (top, sign), (next_, _) = rates[best]["measured"], rates[second]["measured"]
    if sign == "<" or any(rates[name]["measured"][1] == ">" for name in order[1:]):
        return "not decided | | "
    margin = top / next_ - 1
    said = max(rates, key=lambda name: rates[name]["predicted"][0])
    right = "right" if said == best else "WRONG" if margin > WIDE else "wrong, under 10 %"
    return f"{best} | {margin:.0%} | {said}: {right}"


def fit_and_report(title: str, curves: Curves, layouts: Sequence[str], isl: float, files_: list[str]) -> None:
    """Fit to some layouts under one workload, report on all, on further files and on the later session."""
    chosen = [curve for curve in curves.curves if curve.workload.isl.mean == isl]
    model = calibrate(curves.model_copy(update={"curves": tuple(chosen)}), layouts)
    entries = [("", curve, model) for curve in curves.curves]
    for name in files_:
        entries += [(Path(name).stem, curve, model) for curve in load_curves(Path(name)).curves]
    if model.system.gpu.name == "H200":
        entries += later_session(model)
    report(title, model, entries, model.fitted_to)


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")


def main() -> int:
    """Run the three fits."""
    data = files("splitrail.plan") / "data"
    h200 = load_curves(Path(str(data / "h200-qwen3-14b.json")))
    for isl, name in ((8000, "8000/512"), (2000, "2000/1000")):
        fit_and_report(f"H200, fitted to 4agg and 2p2d of {name}", h200, ["4agg", "2p2d"], isl, sys.argv[1:])
    mi325x = load_curves(Path(str(data / "mi325x-qwen3-235b.json")))
    fit_and_report("MI325X, fitted to 1p1d and 2agg", mi325x, ["1p1d-tp8", "2agg-tp8"], 16000, [])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
