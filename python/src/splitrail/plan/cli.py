"""`splitrail plan`: the commands."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from splitrail.plan.advise import SEEDS, Question, Searcher, answer, answer_map
from splitrail.plan.cost import load_prices
from splitrail.plan.curves import curves
from splitrail.plan.fit import calibrate as fit_curves
from splitrail.plan.report import draw
from splitrail.plan.show import document, show
from splitrail.plan.simulate import Balancing, SimulationError
from splitrail.plan.system import Model, load_model, with_balancing, with_cross_layer_blocks
from splitrail.plan.variants import variants
from splitrail.plan.write import write
from splitrail.workload import (
    Curves,
    Lengths,
    Workload,
    WorkloadError,
    explain,
    load_curves,
    read_sla,
)

COULD_NOT_RUN, FAILED = 2, 1

app = typer.Typer(
    invoke_without_command=True,
    help="Predict goodput, aggregated and at every P:D split, and say which layout to serve with.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]


def built_in() -> dict[str, Path]:
    """Calibrated models that come with the package, by name."""
    folder = Path(str(files("splitrail.plan") / "data"))
    return {path.name.removesuffix(".model.json"): path for path in sorted(folder.glob("*.model.json"))}


def find_model(name: str) -> Model:
    """A calibrated model by the name of one that comes with the package, or by its file."""
    known = built_in()
    if name not in known and not Path(name).exists():
        raise WorkloadError(f"--model {name}: no such file, and not one of {', '.join(known)}")
    return load_model(known.get(name, Path(name)))


@app.callback()
def plan(
    context: typer.Context,
    *,
    isl: Annotated[float | None, typer.Option("--isl", help="Mean prompt length in tokens.")] = None,
    osl: Annotated[float | None, typer.Option("--osl", help="Mean answer length in tokens.")] = None,
    isl_cv: Annotated[
        float, typer.Option("--isl-cv", help="Its coefficient of variation; 0: all alike.")
    ] = 0,
    osl_cv: Annotated[
        float, typer.Option("--osl-cv", help="Its coefficient of variation; 0: all alike.")
    ] = 0,
    isl_max: Annotated[int | None, typer.Option("--isl-max", min=1, help="The longest prompt.")] = None,
    osl_max: Annotated[int | None, typer.Option("--osl-max", min=1, help="The longest answer.")] = None,
    hit_rate: Annotated[
        float, typer.Option("--hit-rate", help="Share of each prompt in the prefix cache that prefills.")
    ] = 0,
    decode_hit_rate: Annotated[
        float,
        typer.Option("--decode-hit-rate", help="Share of each prompt that decode engines hold already."),
    ] = 0,
    arrival_cv: Annotated[
        float, typer.Option("--arrival-cv", help="Variation of the gaps between arrivals; 1: Poisson.")
    ] = 1,
    sla: Annotated[
        list[str] | None,
        typer.Option("--sla", help="METRIC_STATISTIC=MS, like ttft_p90=1000; all given must hold."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs to serve on.")] = 8,
    tp: Annotated[
        list[int] | None,
        typer.Option("--tp", min=1, help="Tensor-parallel sizes to try; default: as measured."),
    ] = None,
    mixed_tp: Annotated[
        bool, typer.Option("--mixed-tp", help="Try decode engines of a larger size than prefill's, too.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A file that calibrate wrote, or the name of one that comes along."),
    ] = None,
    decode_model: Annotated[
        str | None, typer.Option("--decode-model", help="The decode pool's, where its GPUs are others.")
    ] = None,
    cross_layer_blocks: Annotated[
        bool,
        typer.Option("--cross-layer-blocks", help="As if a KV block of 128 tokens were one descriptor."),
    ] = False,
    balancing: Annotated[
        Balancing | None,
        typer.Option("--balancing", help="How the router chooses; default: as where it was measured."),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", help="YAML: currency, gpu_hour by GPU, gpus_per_node.")
    ] = None,
    demand: Annotated[
        float | None, typer.Option("--demand", min=0.001, help="Requests/s to serve, for the cost.")
    ] = None,
    splits: Annotated[int, typer.Option("--splits", min=2, help="P:D splits to begin with.")] = 9,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Repeats of the options near the best.")
    ] = SEEDS,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: cores.")
    ] = None,
    with_map: Annotated[
        bool, typer.Option("--map", help="Also how the answer changes with lengths, hit rate and SLA.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page that needs nothing else.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option("--measured", help="Measured curves to draw beside the predicted ones.")
    ] = None,
    write_file: Annotated[
        Path | None, typer.Option("--write", help="Write the recommended layout as a topology file.")
    ] = None,
    topology: Annotated[
        Path | None, typer.Option("--topology", help="The topology that --write takes all else from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search aggregated engines and every P:D split for the highest rate that the SLA allows."""
    if context.invoked_subcommand is not None:
        return
    console = Console(stderr=as_json, highlight=False)
    try:
        if isl is None or osl is None or not sla:
            raise WorkloadError("say --isl, --osl and at least one --sla, like --sla ttft_p90=1000")
        if model is None:
            raise WorkloadError(
                f"say --model: a file that calibrate wrote, or one of {', '.join(built_in())}"
            )
        if (write_file is None) != (topology is None):
            raise WorkloadError(
                "--write and --topology go together: the file's other keys come from the latter"
            )
        known = find_model(model)
        if cross_layer_blocks:
            known = with_cross_layer_blocks(known)
        if balancing:
            known = with_balancing(known, balancing)
        question = Question(
            model=known,
            workload=Workload(
                isl=Lengths(mean=isl, cv=isl_cv, max=isl_max),
                osl=Lengths(mean=osl, cv=osl_cv, max=osl_max),
                hit_rate=hit_rate,
                decode_hit_rate=decode_hit_rate,
                arrival_cv=arrival_cv,
            ),
            sla=read_sla(sla),
            gpus=gpus,
            tps=tuple(sorted(set(tp or sorted(known.steps)))),
            decode_model=find_model(decode_model) if decode_model else None,
            splits=splits,
            mixed_tp=mixed_tp,
        )
        table = load_prices(prices) if prices else None
        beside = load_curves(measured) if measured else None
        with _progress(console) as bar:
            task = bar.add_task("simulating", total=None)
            with Searcher(
                workers, lambda done, total: bar.update(task, completed=done, total=total)
            ) as searcher:
                found = answer(question, searcher, seeds=seeds, prices=table, demand=demand)
                cells = answer_map(question, searcher, variants(question)) if with_map else []
            drawn = curves(question, found) if html or as_json else []
        show(console, question, found)
        for cell in cells:
            console.print(
                Text(f"{cell['row']}, {cell['column']}: {cell['layout'] or 'none'} ({cell['qps']:.3g})")
            )
        if html:
            draw(html, question, found, curves=drawn, cells=cells, measured=beside)
            console.print(Text(f"written: {html}"), soft_wrap=True)
        if write_file and topology:
            if found.recommended is None:
                raise WorkloadError("--write: no layout holds the SLA, so there is nothing to write")
            write(write_file, found.recommended.layout, topology, found.words)
            console.print(Text(f"written: {write_file}"), soft_wrap=True)
    except (WorkloadError, SimulationError, ValidationError) as error:
        raise _could_not_run(error, as_json=as_json) from error
    code = 0 if found.recommended is not None else FAILED
    if as_json:
        _print(
            {
                "ok": code == 0,
                "exit_code": code,
                **document(question, found),
                "map": cells,
                "curves": [curve.model_dump(exclude_defaults=True) for curve in drawn],
            }
        )
    raise typer.Exit(code)


@app.command()
def calibrate(
    points: Annotated[
        Path, typer.Argument(help="Measured curves with their system: JSON, see docs/plan.md.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The calibrated model to write.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Fit to these layouts alone, like 4agg; test on the rest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit step times and transfers to measured points, and say how well each is met."""
    console = Console(stderr=as_json, highlight=False)
    try:
        given: Curves = load_curves(points)
        console.print(Text("fitting; a minute or two"))
        fitted = fit_curves(given, only)
        out.write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _could_not_run(WorkloadError(f"{out}: {error.strerror}"), as_json=as_json) from error
    except (WorkloadError, SimulationError, ValidationError) as error:
        raise _could_not_run(error, as_json=as_json) from error
    for row in fitted.residuals["points"]:
        told = ", ".join(
            f"{key} {value['measured']:g} -> {value['predicted']:g} ({value['error']:+.0%})"
            for key, value in row["figures"].items()
        )
        console.print(Text(f"{row['layout']} {row['workload']} at {row['qps']:g}: {told}"), soft_wrap=True)
    console.print(Text(f"written: {out}"), soft_wrap=True)
    if as_json:
        _print({"ok": True, "exit_code": 0, "model": json.loads(fitted.model_dump_json())})


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _could_not_run(error: Exception, *, as_json: bool) -> typer.Exit:
    told = explain(error)
    Console(stderr=True).print(Text(f"splitrail plan: {told}", style="red"), soft_wrap=True)
    if as_json:
        _print({"ok": False, "exit_code": COULD_NOT_RUN, "error": told})
    return typer.Exit(COULD_NOT_RUN)


def _print(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
