"""Draw a mesh: one HTML page that needs nothing else, and a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.fabric.mesh_checks import Fault, Judgement, blame
from splitrail.fabric.mesh_data import Reading, Result
from splitrail.fabric.schedule import pairs_of
from splitrail.fabric.thresholds import Row, row_of

PAGE = "fabric.html"
WORST = 20
SLOWEST = 5
# Figures fit into the cells up to this many nodes; beyond, they show where the pointer is.
NUMBERED = 16
QUANTITIES = {"gbps": ("bandwidth", "Gb/s", "RdYlGn"), "us": ("latency", "us", "RdYlGn_r")}


def draw(run_dir: Path, result: Result, judgement: Judgement, rows: Sequence[Row]) -> Path:
    """Write the page into the run record; returns its path."""
    path = run_dir / PAGE
    path.write_text(page(result, judgement, rows), encoding="utf-8")
    return path


def page(result: Result, judgement: Judgement, rows: Sequence[Row]) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("splitrail.fabric", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    laid = laid_to(result, judgement.faults)
    measured = sorted(
        (r for r in result.readings if r.gbps is not None), key=lambda reading: reading.gbps or 0
    )
    return environment.get_template(
        "report.html.j2"
    ).render(
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  # the library's own
        title=f"{result.cluster or 'mesh'}, {len(result.nodes)} nodes, {result.at}",
        ok=all(check["ok"] for checks in judgement.checks.values() for check in checks),
        summary=summary(result),
        faults=[_row(fault, laid) for fault in judgement.faults[:WORST]],
        more=max(0, len(judgement.faults) - WORST),
        slowest=[
            {"link": reading, "gbps": _figure(reading.gbps), "us": _figure(reading.us)}
            for reading in measured[:SLOWEST]
        ],
        weak="; ".join(f"{reading} ({_figure(reading.gbps)} Gb/s)" for reading in judgement.weak[:WORST]),
        untested=untested(result),
        # Plotly escapes names itself.
        plots=[Markup(plot) for plot in plots(result)],  # noqa: S704
        thresholds=_thresholds(result, rows),
    )


def summary(result: Result) -> str:
    """What was measured, in a sentence."""
    tested = [reading for reading in result.readings if not reading.skipped]
    pairs = len({reading.pair for reading in tested})
    text = (
        f"{_counted(pairs, 'pair')} of nodes, {_counted(len(tested), 'way')} in "
        f"{_counted(result.rounds, 'round')}, {result.seconds:.0f} s."
    )
    if result.reused_pairs:
        text += f" Taken over from {result.resumed_from}: {_counted(result.reused_pairs, 'pair')}."
    return text


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def laid_to(result: Result, faults: Sequence[Fault]) -> dict[int, list[str]]:
    """The hosts that each fault (by identity) is laid to."""
    found: dict[int, list[str]] = {}
    for host, mine in blame(result, faults).items():
        for fault in mine:
            found.setdefault(id(fault), []).append(host)
    return found


def _row(fault: Fault, laid: dict[int, list[str]]) -> dict[str, str]:
    return {
        "link": str(fault.reading),
        "check": fault.name,
        "measured": f"{fault.measured} {fault.unit}".strip(),
        "required": f"{fault.required} {fault.unit}".strip(),
        "hosts": " or ".join(sorted(laid.get(id(fault), []))),
    }


def untested(result: Result) -> list[str]:
    """What was not tested, and why: counted, never left out."""
    lines = [f"{name} was set aside: {why}." for name, why in sorted(result.set_aside.items())]
    if result.unplanned():
        planned = len(pairs_of(result.settings.plan(node.name for node in result.nodes)))
        lines.append(
            f"A sample of degree {result.settings.sample}: {planned} pairs were planned, "
            f"{result.unplanned()} were not tested."
        )
    why = Counter(reading.skipped for reading in result.readings if reading.skipped)
    return [*lines, *(f"{count} ways: {reason}." for reason, count in why.most_common())]


def plots(result: Result) -> Iterable[str]:
    """A heat map a rail, with a switch between bandwidth and latency; colours are the same on all rails."""
    names = [node.name for node in result.nodes]
    rails = sorted({reading.rail for reading in result.readings})
    spans = {}
    for quantity in QUANTITIES:
        values = [value for r in result.readings if (value := getattr(r, quantity)) is not None]
        spans[quantity] = (0.0 if quantity == "gbps" else min(values, default=0), max(values, default=1))
    for rail in rails:
        ways = {(r.source, r.target): r for r in result.readings if r.rail == rail}
        figure = go.Figure()
        for quantity, span in spans.items():
            figure.add_trace(_map(names, ways, quantity, span))
        failed = [(a, b) for (a, b), reading in ways.items() if reading.error]
        figure.add_trace(
            go.Scatter(
                x=[b for _, b in failed],
                y=[a for a, _ in failed],
                mode="markers",
                hoverinfo="skip",
                marker={"symbol": "x", "color": "#b00020", "size": 12},
                showlegend=False,
            )
        )
        side = min(1000, 260 + 28 * len(names)) if len(names) > 6 else 420  # noqa: PLR2004
        figure.update_layout(
            title=f"rail{rail}",
            width=side + 120,
            height=side,
            plot_bgcolor="#ddd",
            margin={"l": 90, "r": 10, "t": 60, "b": 60},
            updatemenus=[_switch()],
        )
        figure.update_yaxes(autorange="reversed", showgrid=False, categoryorder="array", categoryarray=names)
        figure.update_xaxes(showgrid=False, categoryorder="array", categoryarray=names)
        yield figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=f"rail{rail}", config={"displayModeBar": False}
        )


def _map(
    names: list[str],
    ways: dict[tuple[str, str], Reading],
    quantity: str,
    span: tuple[float, float],
) -> go.Heatmap:
    _, unit, colours = QUANTITIES[quantity]

    def value(a: str, b: str) -> float | None:
        reading = ways.get((a, b))
        return getattr(reading, quantity) if reading else None

    return go.Heatmap(
        x=names,
        y=names,
        z=[[value(a, b) for b in names] for a in names],
        text=[[_hover(ways.get((a, b))) for b in names] for a in names],
        hoverinfo="text",
        texttemplate="%{z:.3g}" if len(names) <= NUMBERED else None,
        zmin=span[0],
        zmax=span[1],
        colorscale=colours,
        colorbar={"title": unit},
        visible=quantity == "gbps",
        xgap=1,
        ygap=1,
    )


def _hover(reading: Reading | None) -> str:
    if reading is None:
        return "not planned"
    why = reading.error or reading.skipped
    return f"{reading}<br>{_figure(reading.gbps)} Gb/s, {_figure(reading.us)} us" + (
        f"<br>{why[:160]}" if why else ""
    )


def _switch() -> dict[str, Any]:
    shown = {quantity: [other == quantity for other in QUANTITIES] + [True] for quantity in QUANTITIES}
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": shown[quantity]}]}
        for quantity, (label, _, _) in QUANTITIES.items()
    ]
    return {
        "buttons": buttons,
        "type": "buttons",
        "direction": "right",
        "x": 1,
        "xanchor": "right",
        "y": 1.18,
    }


def _thresholds(result: Result, rows: Sequence[Row]) -> list[dict[str, str]]:
    used = {
        row.name: row
        for node in result.nodes
        for port in node.rails
        if port.device
        for row in [row_of(rows, port)]
    }
    return [
        {
            "name": row.name,
            "threshold": name.replace("_", " "),
            "value": f"{figure.value:g}",
            "basis": figure.basis,
        }
        for row in used.values()
        for name, figure in row.figures()
    ]


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def show(result: Result, judgement: Judgement, console: Console) -> None:
    """The mesh for a terminal: the worst links first, a line a rail, what was not tested."""
    console.print(Text(f"mesh of {len(result.nodes)} nodes: {summary(result)}"), soft_wrap=True)
    laid = laid_to(result, judgement.faults)
    if judgement.faults:
        table = Table(box=None, pad_edge=False)
        for title in ("worst links", "check", "measured", "required", "laid to"):
            table.add_column(title, overflow="fold")
        for fault in judgement.faults[:WORST]:
            row = _row(fault, laid)
            cells = [row["link"], row["check"], row["measured"], row["required"], row["hosts"]]
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    table = Table(box=None, pad_edge=False)
    for title in ("rail", "ways", "Gb/s min", "median", "max", "us min", "median", "max"):
        table.add_column(title, justify="left" if title == "rail" else "right")
    for rail in sorted({reading.rail for reading in result.readings}):
        mine = [reading for reading in result.readings if reading.rail == rail and not reading.skipped]
        table.add_row(
            f"rail{rail}", str(len(mine)), *_spread([r.gbps for r in mine]), *_spread([r.us for r in mine])
        )
    console.print(table)
    for line in untested(result):
        console.print(Text(f"not tested: {line}"), soft_wrap=True)


def _spread(values: Iterable[float | None]) -> tuple[str, str, str]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "none", "none", "none"
    return _figure(known[0]), _figure(known[len(known) // 2]), _figure(known[-1])
