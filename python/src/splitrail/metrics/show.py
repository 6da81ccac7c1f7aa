"""A window for people: in the terminal, and as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group
from rich.table import Table
from rich.text import Text

from splitrail.metrics.window import PERCENTILES, Window

# Sparklines of the page, in its pixels.
WIDTH, HEIGHT = 220, 36
NOTHING = "-"


def screen(window: Window, found: Sequence[str]) -> Group:
    """Headline, pools, engines and warnings, for the terminal."""
    parts: list[Any] = [Text(headline(window), style="bold"), _times(window)]
    for title, rows in (("pools", pools(window)), ("engines", engines(window))):
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for at, heading in enumerate(rows[0]):
            # On a narrow terminal names are folded, and no heading within a word.
            word = max(map(len, heading.split()), default=0)
            table.add_column(heading, justify="left" if at < 1 else "right", overflow="fold", min_width=word)
        for row in rows[1:]:
            table.add_row(*(Text(cell) for cell in row))
        parts.append(table)
    parts += [Text(f"! {line}", style="red") for line in found]
    return Group(*parts)


def headline(window: Window) -> str:
    """What runs and how much of it is used, in a line."""
    span = "since the engines started" if window.since_start else f"over {window.seconds:.0f} s"
    rate = "" if window.since_start else f", {window.requests / window.seconds:.3g} requests/s"
    when = datetime.fromtimestamp(window.at, UTC)
    return f"{window.ratio}, {when:%Y-%m-%d %H:%M:%S} UTC, {span}{rate}"


def times(window: Window) -> list[list[str]]:
    """TTFT, TPOT and E2E in ms, a row a metric."""
    rows = [["ms", *(f"p{p}" for p in PERCENTILES)]]
    for name, value in (("TTFT", window.ttft_ms), ("TPOT", window.tpot_ms), ("E2E", window.e2e_ms)):
        rows.append([name, *(_figure(value(p)) for p in PERCENTILES)])
    return rows


def _times(window: Window) -> Table:
    table = Table(box=None, pad_edge=False)
    rows = times(window)
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def pools(window: Window) -> list[list[str]]:
    """A row a pool, below its headings."""
    rows = [
        [
            *(
                "pool",
                "engines",
                "running",
                "queued",
                "KV used",
                "cache hits",
                "prompt tok/s",
                "answer tok/s",
            ),
            "prefill : decode time",
        ]
    ]
    for name, pool in window.document()["pools"].items():
        busy = pool["busy"]
        shares = NOTHING if busy["prefill"] is None else f"{busy['prefill']:.0%} : {busy['decode']:.0%}"
        rows.append(
            [
                name or "engines",
                str(pool["engines"]),
                f"{pool['running']:g}",
                f"{pool['waiting']:g}",
                f"{pool['kv_use']:.0%}",
                NOTHING if pool["hit_rate"] is None else f"{pool['hit_rate']:.0%}",
                f"{pool['prompt_tokens_per_s']:.4g}",
                f"{pool['generated_tokens_per_s']:.4g}",
                shares,
            ]
        )
    return rows


def engines(window: Window) -> list[list[str]]:
    """A row an engine, below its headings; a transfer's figures as the bounds that its buckets allow."""
    rows = [
        [
            *("engine", "node", "running", "queued", "KV used", "moved", "GB/s", "MB each"),
            *("descr.", "post ms"),
        ]
    ]
    for engine in window.engines:
        kv = engine.kv
        size = kv.total_bytes.times(1e-6 / kv.count) if kv.count else None
        descriptors, post = kv.descriptors.mean(), kv.post.mean()
        rows.append(
            [
                f"{engine.pool or 'engine'} {engine.replica}",
                engine.node,
                f"{engine.running:g}",
                f"{engine.waiting:g}",
                f"{engine.kv_use:.0%}",
                f"{kv.count:g}",
                kv.gb_per_s.text() if kv.gb_per_s else NOTHING,
                size.text() if size else NOTHING,
                descriptors.text(".0f") if descriptors else NOTHING,
                post.times(1000).text() if post else NOTHING,
            ]
        )
    return rows


def write_page(
    path: Path, windows: Sequence[Window], found: Sequence[str], cluster: str, refresh_s: float
) -> None:
    """The status page: the last window in full, all of them as lines. A browser reloads it by itself."""
    environment = Environment(
        loader=PackageLoader("splitrail.metrics", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    last = windows[-1]
    text = environment.get_template("page.html.j2").render(
        cluster=cluster,
        headline=headline(last),
        refresh_s=round(refresh_s),
        warnings=found,
        times=times(last),
        pools=pools(last),
        engines=engines(last),
        lines=[line for line in _history(windows) if line["points"]],
        width=WIDTH,
        height=HEIGHT,
    )
    # Whole or not at all: a browser may read it at any time.
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _history(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """How the main figures went, as points of a line; none for a figure that was seen fewer than twice."""
    series: dict[str, list[float | None]] = {
        "TTFT p90, ms": [window.ttft_ms(90) for window in windows],
        "TPOT p90, ms": [window.tpot_ms(90) for window in windows],
        "requests/s": [window.requests / window.seconds if window.seconds else None for window in windows],
        "queued": [sum(engine.waiting for engine in window.engines) for window in windows],
        "KV used, %": [100 * max((e.kv_use for e in window.engines), default=0.0) for window in windows],
    }
    return [
        {"name": name, "last": _figure(values[-1]), "points": _points(values)}
        for name, values in series.items()
    ]


def _points(values: Sequence[float | None]) -> str:
    known = [(at, value) for at, value in enumerate(values) if value is not None]
    if len(known) < 2:  # noqa: PLR2004  a line has two ends
        return ""
    top = max(value for _, value in known) or 1.0
    step = WIDTH / (len(values) - 1)
    return " ".join(f"{at * step:.1f},{HEIGHT - 2 - (HEIGHT - 4) * value / top:.1f}" for at, value in known)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
