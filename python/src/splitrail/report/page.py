"""The page, and its figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from splitrail.plan.cost import Prices
from splitrail.plan.report import to_html
from splitrail.report.figures import Figure, figures
from splitrail.report.gather import Asked, Source, by_workload, order
from splitrail.workload import WorkloadError

# Of a picture, for screens of twice the dots.
SCALE = 2


def sections(
    sources: Sequence[Source], prices: Prices | None, gpu: str | None
) -> list[tuple[Asked, list[Figure]]]:
    """Each workload with its figures. Raises WorkloadError where a price is missing."""
    return [(asked, list(figures(asked, prices, gpu))) for asked in by_workload(sources)]


def page(sources: Sequence[Source], drawn: Sequence[tuple[Asked, list[Figure]]]) -> str:
    """One document that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("splitrail.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704  # the library's own
        sources=sources,
        sections=[
            {
                "workload": asked.workload,
                # Plotly escapes names itself.
                "figures": [(Markup(to_html(one.plot)), one.caption) for one in found],  # noqa: S704
                "sustained": [
                    (curve, found) for curve in sorted(asked.curves, key=order) for found in curve.sustained
                ],
                "curves": sorted(asked.curves, key=order),
            }
            for asked, found in drawn
        ],
    )


def pictures(folder: Path, drawn: Sequence[tuple[Asked, list[Figure]]]) -> list[Path]:
    """Every figure as a PNG. Raises WorkloadError where no Chromium can draw them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (asked, found) in enumerate(drawn):
        for figure in found:
            lengths = f"{asked.workload.isl.mean:g}-{asked.workload.osl.mean:g}"
            path = folder / f"{number + 1}-{lengths}-{figure.name}.png"
            try:
                figure.plot.write_image(path, scale=SCALE)
            except Exception as error:  # kaleido has a kind of its own for each way in which a browser fails
                raise WorkloadError(
                    f"{path}: a PNG needs Chromium or Chrome on this machine: {error}"
                ) from error
            written.append(path)
    return written
