"""The figures. Each says in its caption which runs it shows, how long they were, and whether steady."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import plotly.graph_objects as go

from splitrail.plan.cost import MILLION, SECONDS_PER_HOUR, Prices
from splitrail.plan.report import COLOURS, METRICS, MODES, new_figure
from splitrail.report.gather import Asked, order
from splitrail.workload import CLIENT, Curve, Layout, Point, Sla, Sustained

# One a layout; more than the planner shows.
PALETTE = (*COLOURS, "#bf3989", "#9a6700", "#0a7ea4", "#57606a", "#1a7f37")
KEYS = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "e2e_p50", "e2e_p90")


@dataclass(frozen=True)
class Figure:
    """A plot, the name of its picture, and what must be said with it."""

    name: str
    plot: go.Figure
    caption: str


def figures(asked: Asked, prices: Prices | None, gpu: str | None) -> Iterator[Figure]:
    """All that the curves of a workload allow."""
    for number, sla in enumerate(asked.slas):
        tag = f"-{number + 1}" if number else ""
        yield goodputs(asked, sla, tag)
        if (splits := ratio(asked, sla, tag)) is not None:
            yield splits
        if (
            prices is not None
            and gpu is not None
            and (money := costs(asked, sla, prices, gpu, tag)) is not None
        ):
            yield money
    for metric, title, unit, scale in METRICS:
        if any(getattr(point, metric) for curve in asked.curves for point in curve.points):
            yield lines(asked, metric, title, unit, scale)
    if (both := against(asked)) is not None:
        yield both


def goodputs(asked: Asked, sla: Sla, tag: str) -> Figure:
    """Bars of the highest rate held, by layout, measured beside predicted; error bars: sure to 95 %."""
    pairs = asked.found(sla)
    gpus = sorted({Layout.read(curve.layout).gpus for curve, _ in pairs})
    plot = new_figure(f"Goodput on {_join(gpus)} GPUs", "requests/s", "")
    for kind in ("measured", "predicted"):
        mine = [(curve, found) for curve, found in pairs if curve.kind == kind]
        if not mine:
            continue
        plot.add_bar(
            name=kind,
            x=[curve.layout for curve, _ in mine],
            y=[found.qps or 0.0 for _, found in mine],
            text=[found.shown for _, found in mine],
            marker_color=[MODES[Layout.read(curve.layout).mode] for curve, _ in mine],
            marker_pattern_shape="" if kind == "measured" else "/",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [(found.high or found.qps or 0) - (found.qps or 0) for _, found in mine],
                "arrayminus": [(found.qps or 0) - (found.low or found.qps or 0) for _, found in mine],
            },
        )
    equal = "" if len(gpus) == 1 else " NOT at equal GPUs."
    lagged = " >=: the load generator's own lag ended the search, and what serves may hold more."
    bound = lagged if any(found.binding == CLIENT for _, found in pairs) else ""
    return Figure(f"goodput{tag}", plot, f"{sla}.{equal}{bound} {_runs(pairs)}")


def ratio(asked: Asked, sla: Sla, tag: str) -> Figure | None:
    """Goodput over the share of GPUs that prefill, and the best aggregated layout as a line."""
    pairs = asked.found(sla)
    splits = [(curve, found) for curve, found in pairs if Layout.read(curve.layout).mode == "pd"]
    if len({curve.layout for curve, _ in splits}) < 2:  # noqa: PLR2004  # one point is no map
        return None
    plot = new_figure("P:D ratio", "requests/s", "share of GPUs that prefill")
    for kind, dash in (("measured", "solid"), ("predicted", "dot")):
        mine = [(curve, found) for curve, found in splits if curve.kind == kind]
        if mine:
            plot.add_scatter(
                name=f"split, {kind}",
                x=[order(curve)[1] for curve, _ in mine],
                y=[found.qps or 0.0 for _, found in mine],
                text=[curve.layout for curve, _ in mine],
                mode="lines+markers+text",
                textposition="top center",
                line={"color": MODES["pd"], "dash": dash},
            )
        whole = [found.qps or 0.0 for curve, found in pairs if "agg" in curve.layout and curve.kind == kind]
        if whole:
            plot.add_scatter(
                name=f"aggregated, {kind}",
                x=[0, 1],
                y=[max(whole)] * 2,
                mode="lines",
                line={"color": MODES["aggregated"], "dash": dash},
            )
    plot.update_xaxes(range=[0, 1], tickformat=".0%")
    return Figure(f"ratio{tag}", plot, f"{sla}. {_runs(pairs)}")


def lines(asked: Asked, metric: str, title: str, unit: str, scale: float) -> Figure:
    """One metric over the rate: p50, with a band up to p90; hollow marks were not steady."""
    plot = new_figure(f"{title} against rate", f"{title} in {unit}", "requests/s")
    layouts = list(dict.fromkeys(curve.layout for curve in sorted(asked.curves, key=order)))
    steady: list[float] = []
    for curve in sorted(asked.curves, key=order):
        colour = PALETTE[layouts.index(curve.layout) % len(PALETTE)]
        points = [point for point in curve.points if point.value(f"{metric}_p50") is not None]
        if not points:
            continue
        rates = [point.qps for point in points]
        middle, upper = (
            [(point.value(f"{metric}_{p}") or 0) * scale for point in points] for p in ("p50", "p90")
        )
        steady += [top for top, point in zip(upper, points, strict=True) if point.steady is not False]
        dash = "solid" if curve.kind == "measured" else "dot"
        plot.add_scatter(
            name=f"{curve.layout}, {curve.kind}",
            x=rates,
            y=middle,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            marker={"symbol": ["circle-open" if point.steady is False else "circle" for point in points]},
        )
        # There along p50 and back along p90: the band between them.
        plot.add_scatter(
            x=[*rates, *reversed(rates)],
            y=[*middle, *reversed(upper)],
            # Few points would get marks by themselves.
            mode="lines",
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    limits = [limit for sla in asked.slas for limit in sla.limits if limit.metric == metric]
    for limit in dict.fromkeys(limits):
        plot.add_hline(y=limit.ms * scale, line_dash="dash", line_color="#b00020", annotation_text=str(limit))
    if steady:
        # An overloaded point would flatten all others.
        top = max([*(2 * value for value in steady), *(1.3 * limit.ms * scale for limit in limits)])
        plot.update_yaxes(range=[0, min(top, max(steady) * 3)] if metric != "tpot" else None)
    return Figure(metric, plot, f"p50, and a band up to p90. {_points(asked.curves)}")


def against(asked: Asked) -> Figure | None:
    """Predicted against measured, at the rates that were measured; steady points only."""
    plot = new_figure("Predicted against measured", "predicted ms", "measured ms")
    both: list[float] = []
    for index, key in enumerate(KEYS):
        pairs = [
            (one, other, f"{curve.layout} at {point.qps:g}/s")
            for curve, point, predicted in matches(asked.curves)
            if (one := point.value(key)) and (other := between(predicted, point.qps, key))
        ]
        if pairs:
            plot.add_scatter(
                name=key,
                x=[one for one, _, _ in pairs],
                y=[other for _, other, _ in pairs],
                text=[said for _, _, said in pairs],
                mode="markers",
                marker_color=COLOURS[index % len(COLOURS)],
            )
            both += [value for one, other, _ in pairs for value in (one, other)]
    if not both:
        return None
    ends = [min(both), max(both)]
    plot.add_scatter(x=ends, y=ends, mode="lines", line_color="#888", name="equal")
    plot.update_xaxes(type="log")
    plot.update_yaxes(type="log")
    return Figure(
        "predicted", plot, f"Predictions between simulated rates are interpolated. {_points(asked.curves)}"
    )


def matches(curves: Sequence[Curve]) -> Iterator[tuple[Curve, Point, Curve]]:
    """Each measured point that may count, with the predicted curve of its layout."""
    predicted = {curve.layout: curve for curve in curves if curve.kind == "predicted" and curve.points}
    for curve in curves:
        if curve.kind == "measured" and curve.layout in predicted:
            for point in curve.points:
                if point.steady is not False:
                    yield curve, point, predicted[curve.layout]


def between(curve: Curve, qps: float, key: str) -> float | None:
    """A figure of a curve at a rate, by a power of the rate between two points; None outside of them."""
    known = [(point.qps, value) for point in curve.points if (value := point.value(key))]
    for (low, under), (high, over) in pairwise(known):
        if low * (1 - 1e-9) <= qps <= high * (1 + 1e-9):
            share = (log(qps) - log(low)) / (log(high) - log(low))
            return exp(log(under) + share * (log(over) - log(under)))
    exact = [value for rate, value in known if abs(rate - qps) < 1e-9 * qps]
    return exact[0] if exact else None


def costs(asked: Asked, sla: Sla, prices: Prices, gpu: str, tag: str) -> Figure | None:
    """Money for a million tokens at the goodput, prompt and answer together. Raises WorkloadError."""
    pairs = [(curve, found) for curve, found in asked.found(sla) if found.qps]
    if not pairs:
        return None
    tokens = asked.workload.isl.mean + asked.workload.osl.mean
    plot = new_figure("Cost", f"{prices.currency} a million tokens", "")
    for kind in ("measured", "predicted"):
        mine = [(curve, found) for curve, found in pairs if curve.kind == kind]
        money = [
            Layout.read(curve.layout).gpus
            * prices.hour(gpu)
            / ((found.qps or 1.0) * tokens * SECONDS_PER_HOUR / MILLION)
            for curve, found in mine
        ]
        if mine:
            plot.add_bar(
                name=kind,
                x=[curve.layout for curve, _ in mine],
                y=money,
                text=[f"{one:.3g}" for one in money],
                marker_color=[MODES[Layout.read(curve.layout).mode] for curve, _ in mine],
                marker_pattern_shape="" if kind == "measured" else "/",
            )
    price = f"{prices.hour(gpu):g} {prices.currency} a {gpu}-hour, at the goodput, GPUs in fractions"
    return Figure(f"cost{tag}", plot, f"{price}. {sla}. {_runs(pairs)}")


def _runs(pairs: Sequence[tuple[Curve, Sustained]]) -> str:
    """Which runs, how long, and that only steady ones count."""
    told = []
    for source in dict.fromkeys(curve.source or "no source given" for curve, _ in pairs):
        mine = [found for curve, found in pairs if (curve.source or "no source given") == source]
        seconds = sum(found.seconds for found in mine)
        long = f", {seconds:.0f} s of traffic" if seconds else ""
        told.append(f"{source}: {sum(found.runs for found in mine)} runs{long}")
    return f"Only steady runs count. {'; '.join(told)}."


def _points(curves: Sequence[Curve]) -> str:
    points = [point for curve in curves for point in curve.points]
    unsteady = sum(point.steady is False for point in points)
    unknown = sum(point.steady is None for point in points)
    windows = [point.seconds for point in points if point.seconds]
    long = f"windows of {min(windows):.0f} to {max(windows):.0f} s" if windows else "windows not recorded"
    told = f"{len(points)} points, {unsteady} not steady (hollow), {unknown} not judged; {long}"
    return f"{told}. Runs: {'; '.join(dict.fromkeys(curve.source or 'no source given' for curve in curves))}."


def _join(numbers: Sequence[int]) -> str:
    return " and ".join(str(number) for number in numbers)
