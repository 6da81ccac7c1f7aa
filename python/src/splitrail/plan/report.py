"""An answer as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from splitrail.plan.advise import Answer, Question
from splitrail.plan.show import conclusion, row
from splitrail.workload import Curve, Curves

WIDTH, HEIGHT = 560, 380
COLOURS = ("#1f6feb", "#d1570a", "#2a8a57", "#8250df", "#6e7781")
# By layout in every figure: aggregated engines are blue, splits orange.
MODES = {"aggregated": COLOURS[0], "pd": COLOURS[1]}
METRICS = (("ttft", "TTFT", "ms", 1.0), ("tpot", "TPOT", "ms", 1.0), ("e2e", "E2E", "s", 0.001))


def draw(
    path: Path,
    question: Question,
    answer: Answer,
    *,
    curves: Sequence[Curve],
    cells: Sequence[dict[str, Any]],
    measured: Curves | None,
) -> None:
    """Write the page. Raises OSError."""
    path.write_text(page(question, answer, curves=curves, cells=cells, measured=measured), encoding="utf-8")


def page(
    question: Question,
    answer: Answer,
    *,
    curves: Sequence[Curve],
    cells: Sequence[dict[str, Any]],
    measured: Curves | None,
) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("splitrail.plan", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    beside = [
        curve
        for curve in (measured.curves if measured else ())
        if curve.workload.isl == question.workload.isl and curve.workload.osl == question.workload.osl
    ]
    figures = [
        goodputs(question, answer),
        ratios(answer),
        *(lines(question, [*curves, *beside], metric) for metric in METRICS),
        residuals(question),
        costs(answer),
    ]
    return environment.get_template("report.html.j2").render(
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  # the library's own
        question=question,
        gpu=question.model.system.gpu.name,
        conclusion=conclusion(question, answer),
        rows=[(option is answer.recommended, row(option)) for option in answer.options],
        costs=[
            (option.layout.label, answer.costs[option.layout.label])
            for option in answer.options
            if option.layout.label in answer.costs
        ],
        # Plotly escapes names itself.
        plots=[Markup(to_html(figure)) for figure in figures if figure is not None],  # noqa: S704
        maps=[Markup(to_html(figure)) for figure in maps(cells)],  # noqa: S704
        fitted=question.model.fitted_to,
        curves=[*curves, *beside],
    )


def goodputs(question: Question, answer: Answer) -> go.Figure:
    """Bars of goodput, all on the same number of GPUs."""
    options = sorted(answer.options, key=lambda option: (option.layout.mode, prefill_share(option.layout)))
    return new_figure(
        f"Goodput on {question.gpus} GPUs",
        "requests/s under the SLA",
        "",
        go.Bar(
            x=[option.layout.label for option in options],
            y=[option.qps for option in options],
            error_y={"array": [option.spread for option in options], "type": "data"},
            marker_color=[MODES[option.layout.mode] for option in options],
            text=[f"{option.qps:.3g}" if option.qps else "none" for option in options],
        ),
    )


def ratios(answer: Answer) -> go.Figure | None:
    """Goodput over the share of GPUs that prefill, beside the best aggregated layout."""
    splits = sorted(
        (o for o in answer.options if o.layout.mode == "pd"), key=lambda o: prefill_share(o.layout)
    )
    if not splits:
        return None
    figure = new_figure(
        "P:D ratio",
        "requests/s",
        "share of GPUs that prefill",
        go.Scatter(
            x=[prefill_share(option.layout) for option in splits],
            y=[option.qps for option in splits],
            text=[option.layout.label for option in splits],
            mode="lines+markers+text",
            textposition="top center",
            name="split",
            line_color=MODES["pd"],
        ),
    )
    if whole := answer.best("aggregated"):
        figure.add_hline(y=whole.qps, line_dash="dash", line_color=MODES["aggregated"])
        figure.add_annotation(
            x=1,
            y=whole.qps,
            xref="paper",
            text=whole.layout.label,
            showarrow=False,
            yshift=10,
            xanchor="right",
        )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    return figure


def lines(question: Question, curves: Sequence[Curve], of: tuple[str, str, str, float]) -> go.Figure:
    """One metric over the rate: p50 as a line, p90 as the band's upper edge; measured points as marks."""
    metric, name, unit, scale = of
    figure = new_figure(f"{name} against rate", f"{name} in {unit}", "requests/s")
    layouts = list(dict.fromkeys(curve.layout for curve in curves))
    for curve in curves:
        colour = COLOURS[layouts.index(curve.layout) % len(COLOURS)]
        rates = [point.qps for point in curve.points]
        for statistic, dash in (("p50", "solid"), ("p90", "dot")):
            values = [point.value(f"{metric}_{statistic}") for point in curve.points]
            if not any(values):
                continue
            # A run that was not steady shows what it did, hollow: it says nothing about a rate to sustain.
            symbols = ["circle-open" if point.steady is False else "circle" for point in curve.points]
            figure.add_scatter(
                x=rates,
                y=[None if value is None else value * scale for value in values],
                mode="markers" if curve.kind == "measured" else "lines+markers",
                marker={
                    "color": colour,
                    "symbol": "x" if curve.kind == "measured" else symbols,
                    "size": 9 if curve.kind == "measured" else 6,
                },
                line={"color": colour, "dash": dash},
                name=f"{curve.layout} {statistic}" + (", measured" if curve.kind == "measured" else ""),
            )
    for limit in question.sla.limits:
        if limit.metric == metric:
            figure.add_hline(y=limit.ms * scale, line_dash="dash", line_color="#b00020")
            figure.add_annotation(
                x=0,
                y=limit.ms * scale,
                xref="paper",
                text=str(limit),
                showarrow=False,
                yshift=9,
                xanchor="left",
            )
    if metric != "tpot":
        # An overloaded point would flatten all others. The axis of a logarithm puts annotations by its
        # exponent.
        top = [limit.ms * scale * 3 for limit in question.sla.limits if limit.metric == metric]
        if top:
            figure.update_yaxes(range=[0, max(top)])
    return figure


def residuals(question: Question) -> go.Figure | None:
    """Predicted against measured, of the points that the model was fitted to."""
    points = question.model.residuals.get("points", [])
    if not points:
        return None
    figure = new_figure("Predicted against measured", "predicted ms", "measured ms")
    series: dict[str, list[tuple[float, float, str]]] = {}
    for point in points:
        for key, value in point["figures"].items():
            label = f"{point['layout']} {point['workload']} at {point['qps']:g}"
            series.setdefault(key, []).append((value["measured"], value["predicted"], label))
    both = [value for rows in series.values() for one in rows for value in one[:2]]
    figure.add_scatter(
        x=[min(both), max(both)], y=[min(both), max(both)], mode="lines", line_color="#888", name="equal"
    )
    for index, (key, rows) in enumerate(sorted(series.items())):
        figure.add_scatter(
            x=[one[0] for one in rows],
            y=[one[1] for one in rows],
            text=[one[2] for one in rows],
            mode="markers",
            name=key,
            marker_color=COLOURS[index % len(COLOURS)],
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def costs(answer: Answer) -> go.Figure | None:
    """Money for a million tokens, by layout."""
    if not answer.costs:
        return None
    options = [option for option in answer.options if option.layout.label in answer.costs]
    currency = answer.costs[options[0].layout.label].currency
    return new_figure(
        "Cost",
        f"{currency} a million tokens",
        "",
        go.Bar(
            x=[option.layout.label for option in options],
            y=[answer.costs[option.layout.label].money_per_million for option in options],
            marker_color=[MODES[option.layout.mode] for option in options],
            text=[f"{answer.costs[option.layout.label].money_per_million:.3g}" for option in options],
        ),
    )


def maps(cells: Sequence[dict[str, Any]]) -> list[go.Figure]:
    """The split's margin over aggregated, for lengths, for hit rates and for SLAs; each cell names its
    layout.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        kind = "Prompt by answer length" if str(cell["row"]).startswith("ISL") else f"Other {cell['row']}"
        groups.setdefault(kind, []).append(cell)
    return [_map(title, group) for title, group in groups.items()]


def _map(title: str, group: Sequence[dict[str, Any]]) -> go.Figure:
    across = list(dict.fromkeys(cell["column"] for cell in group))
    down = list(dict.fromkeys(cell["row"] for cell in group))
    place = {(cell["row"], cell["column"]): cell for cell in group}
    chosen = [[place[one, other] for other in across] for one in down]
    figure = new_figure(
        title,
        "",
        "",
        go.Heatmap(
            x=across,
            y=down,
            z=[[_bounded(cell) for cell in line] for line in chosen],
            text=[
                [f"{cell['layout'] or 'none'}<br>{cell['qps']:.3g}/s<br>{_margin(cell)}" for cell in line]
                for line in chosen
            ],
            texttemplate="%{text}",
            zmin=-1,
            zmax=1,
            zmid=0,
            colorscale=[[0, "#7fb0f7"], [0.5, "#f4f4f4"], [1, "#f3a56b"]],
            showscale=False,
        ),
    )
    figure.update_layout(height=150 + 70 * len(down))
    return figure


def _bounded(cell: dict[str, Any]) -> float:
    """The margin for a colour; where only one mode sustains anything, that end of the scale."""
    if cell["margin"] is not None:
        return max(-1.0, min(1.0, float(cell["margin"])))
    if cell["layout"] is None:
        return 0.0
    return -1.0 if "agg" in cell["layout"] else 1.0


def _margin(cell: dict[str, Any]) -> str:
    return "" if cell["margin"] is None else f"split {cell['margin']:+.0%}"


def prefill_share(layout: Any) -> float:
    return layout.prefill.gpus / layout.gpus if layout.prefill else 0.0


def new_figure(title: str, y: str, x: str, *traces: Any) -> go.Figure:
    figure = go.Figure(list(traces))
    figure.update_layout(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        template="plotly_white",
        xaxis_title=x,
        yaxis_title=y,
    )
    return figure


def to_html(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False))
