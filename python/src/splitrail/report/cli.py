"""`splitrail report`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from splitrail.plan.cost import load_prices
from splitrail.report.gather import load
from splitrail.report.page import page, pictures, sections
from splitrail.workload import WorkloadError, explain

COULD_NOT_RUN = 2


def report(
    files: Annotated[
        list[Path],
        typer.Argument(help="Curves that bench measured, or what `splitrail plan --json` printed."),
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option("--png", help="Folder for every figure as a picture; needs Chromium.")
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", help="YAML: currency, gpu_hour by GPU; needs --gpu.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="The GPU's name in the price table.")] = None,
) -> None:
    """Put measured and predicted curves on one page that needs nothing else."""
    console = Console(highlight=False)
    try:
        if (prices is None) != (gpu is None):
            raise WorkloadError("--prices and --gpu go together")
        sources = [load(path) for path in files]
        drawn = sections(sources, load_prices(prices) if prices else None, gpu)
        out.write_text(page(sources, drawn), encoding="utf-8")
        written = [out, *(pictures(png, drawn) if png else [])]
    except (WorkloadError, ValidationError, OSError) as error:
        told = f"splitrail report: {explain(error)}"
        Console(stderr=True).print(Text(told, style="red"), soft_wrap=True)
        raise typer.Exit(COULD_NOT_RUN) from error
    for path in written:
        console.print(Text(f"written: {path}"), soft_wrap=True)
