"""`splitrail bench`: the commands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from splitrail.bench import cluster
from splitrail.bench.engines import Endpoint
from splitrail.bench.http import Http
from splitrail.bench.judge import judge
from splitrail.bench.matrix import Cell, Matrix, Served, State, cells, curve, load_plan, said
from splitrail.bench.profile import document as profile_document
from splitrail.bench.profile import of_source
from splitrail.bench.search import AFTER, Budget, Measure, Search, Tried
from splitrail.bench.steady import gate
from splitrail.bench.traffic import Traffic
from splitrail.bench.vllm_serve import VllmServe
from splitrail.bench.workloads import Load, by_name, drawn, of_trace
from splitrail.plan.cli import find_model
from splitrail.project import Project, ProjectError
from splitrail.proof import ProofError, check_reason
from splitrail.run.execute import INTERRUPTED, OK, execute
from splitrail.run.playbook import CannotRun, Options
from splitrail.verdict import write_json
from splitrail.workload import (
    Curves,
    Layout,
    Lengths,
    Sla,
    Window,
    Workload,
    WorkloadError,
    explain,
    read_sla,
)

COULD_NOT_RUN, FAILED = 2, 1

app = typer.Typer(
    no_args_is_help=True,
    help="Measure an endpoint: a rate, the highest rate that an SLA allows, topologies against one another.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Url = Annotated[str | None, typer.Option("--url", help="An OpenAI-compatible endpoint; needs --model.")]
ModelId = Annotated[str | None, typer.Option("--model", help="The name under which the endpoint serves.")]
Inventory = Annotated[
    str | None, typer.Option("-i", "--inventory", help="A cluster: what it serves is measured from its head.")
]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="File with the endpoint's key; never on a command line.")
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Processes that share the traffic; more where one lags.")
]
WorkloadName = Annotated[
    str | None,
    typer.Option("-w", "--workload", help="A name of inventories/workloads, or a file, or a trace."),
]
Isl = Annotated[float | None, typer.Option("--isl", min=1, help="Mean prompt length in tokens.")]
Osl = Annotated[float | None, typer.Option("--osl", min=1, help="Mean answer length in tokens.")]
HitRate = Annotated[float, typer.Option("--hit-rate", help="Share of each prompt that others share.")]
Limits = Annotated[
    list[str] | None,
    typer.Option("--sla", help="METRIC_STATISTIC=MS, like ttft_p90=1000; default: the workload's own."),
]
LayoutName = Annotated[
    str, typer.Option("--layout", help="What serves there, for the record: 4agg, 2p2d, 1p3d-tp8.")
]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Write the points, as docs/plan.md says.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Draws arrivals and lengths.")]
Waive = Annotated[
    str | None,
    typer.Option("--waive", help="Measure without a proof of the fabric, for this reason in words."),
]
ExtraVars = Annotated[
    list[str] | None, typer.Option("-e", "--extra-vars", help="For Ansible: key=value, a mapping, or @FILE.")
]


@dataclass(frozen=True)
class Source:
    """What offers the traffic, and what it is offered to, in words."""

    generator: Http | VllmServe
    about: str


@app.command("point")
def point_command(
    *,
    url: Url = None,
    model: ModelId = None,
    inventory: Inventory = None,
    key_file: KeyFile = None,
    processes: Processes = 1,
    workload: WorkloadName = None,
    isl: Isl = None,
    osl: Osl = None,
    hit_rate: HitRate = 0.0,
    sla: Limits = None,
    qps: Annotated[float, typer.Option("--qps", min=0.0001, help="Requests a second to offer.")],
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long requests count.")] = 60,
    warm_s: Annotated[float, typer.Option("--warm", min=0, help="Seconds before that, which do not.")] = 15,
    layout: LayoutName = "1agg",
    seed: Seed = 0,
    out: Out = None,
    waive: Waive = None,
    extra_vars: ExtraVars = None,
    as_json: Json = False,
) -> None:
    """Offer one rate, and say whether it was steady and held the SLA."""
    console = Console(stderr=as_json, highlight=False)
    try:
        load = _load(workload, isl, osl, hit_rate)
        source = _source(url, model, inventory, key_file, processes, waive=waive, extra_vars=extra_vars)
        limits = _sla(sla, load).limits if sla or load.sla else ()
        window = Window(seconds=warm_s + seconds, drop_s=warm_s)
        # What is sent after the window lets its last requests meet as many others as the first.
        run = _measure(source, load)(qps, window, window.seconds + AFTER * warm_s / 2, seed)
        tried = Tried(qps, runs=[(run, window)], findings=gate([run], window))
        counted = run.within(window)
        tried.judged = [judge(one, [counted.seconds(one.metric)]) for one in limits]
        found = curve(Cell(Served(topology=layout), Layout.read(layout), load), [tried], None, source.about)
        _write(out, Curves(about=source.about, curves=(found,)))
    except _ERRORS as error:
        raise _could_not_run(error, as_json=as_json) from error
    console.print(Text(tried.said), soft_wrap=True)
    for finding in tried.findings:
        console.print(Text(f"  {'ok' if finding.ok else 'FAIL':5}{finding}"), soft_wrap=True)
    for one in tried.judged:
        console.print(Text(f"  {'ok' if one.holds else 'FAIL':5}{one.limit}: {one.ratio:.2f} of it"))
    if run.errors:
        console.print(Text(f"  first error: {run.errors[0][:300]}"), soft_wrap=True)
    if as_json:
        _print({"ok": tried.ok, "exit_code": int(not tried.ok), **found.model_dump(exclude_defaults=True)})
    raise typer.Exit(OK if tried.ok else FAILED)


@app.command()
def search(
    *,
    url: Url = None,
    model: ModelId = None,
    inventory: Inventory = None,
    key_file: KeyFile = None,
    processes: Processes = 1,
    workload: WorkloadName = None,
    isl: Isl = None,
    osl: Osl = None,
    hit_rate: HitRate = 0.0,
    sla: Limits = None,
    near: Annotated[float | None, typer.Option("--near", min=0.0001, help="A guess of the rate.")] = None,
    requests: Annotated[int, typer.Option("--requests", min=20, help="That count in a run.")] = 300,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of a rate, until it is sure.")] = 4,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.001, help="How near to look.")] = 0.03,
    budget_s: Annotated[float, typer.Option("--budget", min=1, help="Seconds of sending in all.")] = 3600,
    run_s: Annotated[
        float, typer.Option("--run-seconds", min=1, help="The longest that a run counts.")
    ] = 900,
    layout: LayoutName = "1agg",
    seed: Seed = 0,
    out: Out = None,
    waive: Waive = None,
    extra_vars: ExtraVars = None,
    as_json: Json = False,
) -> None:
    """Find the highest rate, in fractions of a request a second, that holds the SLA."""
    console = Console(stderr=as_json, highlight=False)
    try:
        load = _load(workload, isl, osl, hit_rate)
        limits = _sla(sla, load)
        source = _source(url, model, inventory, key_file, processes, waive=waive, extra_vars=extra_vars)

        def tell(one: Tried, spent: float) -> None:
            console.print(Text(f"{one.said}; {spent:.0f} s of {budget_s:g}"), soft_wrap=True)

        budget = Budget(requests, repeats, tolerance, budget_s, run_s, seed)
        looking = Search(_measure(source, load), limits, budget, tell)
        found = looking.run(near)
        drawn_curve = curve(
            Cell(Served(topology=layout), Layout.read(layout), load), looking.tried, found, source.about
        )
        _write(out, Curves(about=source.about, curves=(drawn_curve,)))
    except _ERRORS as error:
        raise _could_not_run(error, as_json=as_json) from error
    console.print(Text(said(found)), soft_wrap=True)
    code = OK if found.qps is not None else FAILED
    if as_json:
        curve_document = drawn_curve.model_dump(mode="json", exclude_defaults=True)
        _print({"ok": code == OK, "exit_code": code, **curve_document})
    raise typer.Exit(code)


@app.command("matrix")
def matrix_command(
    plan_file: Annotated[Path, typer.Argument(help="YAML: topologies, workloads, sla; see docs/bench.md.")],
    *,
    inventory: Inventory = None,
    processes: Processes = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of its state; default: build/bench/NAME.")
    ] = None,
    waive: Waive = None,
    extra_vars: ExtraVars = None,
    as_json: Json = False,
) -> None:
    """Deploy each topology, search each workload; run it again to go on where it was interrupted."""
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
        plan = load_plan(plan_file)
        known = cluster.read(options.inventory)
        waiver = _allowed(project, known, waive)
        topologies = project.root / "inventories/topologies"
        layouts = [cluster.layout(one.topology, topologies, one.mode) for one in plan.topologies]
        loads = [by_name(name, project.root / "inventories/workloads") for name in plan.workloads]
        for load in loads:
            _sla(list(plan.sla), load)
        state = State.open(out or project.root / "build/bench" / plan_file.stem, plan)

        def extra(served: Served) -> tuple[str, ...]:
            said_vars = {"topology_name": served.topology, **served.extra_vars}
            if served.mode:
                said_vars["llm_serve_mode"] = served.mode
            return (*options.extra_vars, json.dumps(said_vars), *waiver)

        def deploy(served: Served) -> None:
            told = Options(inventory=options.inventory, extra_vars=extra(served))
            report = execute(project, "serve", "playbooks/serve.yml", told, resume=False, console=console)
            if report.code == INTERRUPTED:
                raise KeyboardInterrupt
            if report.code != OK:
                raise WorkloadError(f"{served.topology} could not be served: see {report.folder}")

        def measure(cell: Cell) -> Measure:
            told = Options(inventory=options.inventory, extra_vars=extra(cell.served))
            return _measure(Source(VllmServe(project, told, processes), known.name), cell.load)

        matrix = Matrix(
            plan,
            cells(plan, layouts, loads),
            state,
            deploy,
            measure,
            lambda line: console.print(Text(line), soft_wrap=True),
            source=f"splitrail bench matrix {plan_file.name} on {known.name}",
        )
        try:
            found = matrix.run()
        except KeyboardInterrupt as error:
            kept = f"interrupted; what was measured is in {state.folder}: run it again to go on"
            console.print(Text(kept), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from error
    except _ERRORS as error:
        raise _could_not_run(error, as_json=as_json) from error
    console.print(Text(f"written: {state.folder / 'curves.json'}"), soft_wrap=True)
    if as_json:
        _print({"ok": True, "exit_code": OK, **found.model_dump(mode="json", exclude_defaults=True)})


@app.command("profile")
def profile_command(
    source: Annotated[
        Path, typer.Argument(help="A trace, an access log, or the text of vLLM's or Ray's metrics.")
    ],
    *,
    before: Annotated[
        Path | None, typer.Option("--before", help="The metrics' earlier text: only what came after counts.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A planner's model, to predict a trace's shares of time.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write it as a file of inventories/workloads.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn traffic that you have into a workload, with its share of time in prefill and decode."""
    console = Console(stderr=as_json, highlight=False)
    try:
        found = of_source(source, before, find_model(model) if model else None)
        if out:
            out.write_text(found.file(), encoding="utf-8")
    except _ERRORS as error:
        raise _could_not_run(error, as_json=as_json) from error
    for line in found.lines():
        console.print(Text(line), soft_wrap=True)
    if as_json:
        _print({"ok": True, "exit_code": OK, **profile_document(found)})


_ERRORS = (WorkloadError, CannotRun, ProjectError, ValidationError, OSError)


def _load(name: str | None, isl: float | None, osl: float | None, hit_rate: float) -> Load:
    """The workload that the options name. Raises WorkloadError."""
    if name is None:
        if isl is None or osl is None:
            raise WorkloadError("say --workload NAME, or --isl and --osl")
        return drawn(Workload(isl=Lengths(mean=isl), osl=Lengths(mean=osl), hit_rate=hit_rate))
    if isl is not None or osl is not None:
        raise WorkloadError("--workload says the lengths: leave out --isl and --osl")
    path = Path(name)
    if path.is_file() and path.suffix not in {".yml", ".yaml"}:
        return of_trace(path)
    folder = Path() if path.is_file() else Project.find(Path.cwd()).root / "inventories/workloads"
    return by_name(name, folder)


def _sla(given: list[str] | None, load: Load) -> Sla:
    """The limits given, or the workload's own. Raises WorkloadError where there is neither."""
    texts = list(given or load.sla)
    if not texts:
        raise WorkloadError(f"workload {load.name} has no SLA: say --sla, like --sla ttft_p90=1000")
    return read_sla(texts)


def _source(
    url: str | None,
    model: str | None,
    inventory: str | None,
    key_file: Path | None,
    processes: int,
    *,
    waive: str | None,
    extra_vars: list[str] | None,
) -> Source:
    """A URL is asked from here, a cluster from its head. Raises WorkloadError."""
    key = key_file.read_text(encoding="utf-8").strip() if key_file else None
    if url is not None:
        if inventory is not None or model is None:
            raise WorkloadError("--url goes with --model, and without --inventory")
        return Source(Http(Endpoint([url]), model, key, processes), url)
    project = Project.find(Path.cwd())
    options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
    known = cluster.read(options.inventory)
    _allowed(project, known, waive)
    return Source(VllmServe(project, options, processes, key=key), known.name)


def _allowed(project: Project, known: cluster.Cluster, waive: str | None) -> tuple[str, ...]:
    """The waiver as an extra variable, where one is given; without one the fabric must be proven."""
    if waive is None:
        cluster.refuse_unproven(project, known)
        return ()
    try:
        return (json.dumps({"fabric_waiver": check_reason(waive)}),)
    except ProofError as error:
        raise WorkloadError(f"--waive: {error}") from error


def _measure(source: Source, load: Load) -> Measure:
    def measure(qps: float, window: Window, seconds: float, seed: int) -> Any:
        extra = getattr(source.generator, "extra_s", 0.0)
        traffic: Traffic = load.draw(qps, seconds + extra, seed, window.drop_s)
        return source.generator(traffic)

    return measure


def _write(path: Path | None, document: Curves) -> None:
    if path:
        write_json(path, document.model_dump(mode="json", exclude_defaults=True))


def _could_not_run(error: Exception, *, as_json: bool) -> typer.Exit:
    told = explain(error)
    Console(stderr=True).print(Text(f"splitrail bench: {told}", style="red"), soft_wrap=True)
    if as_json:
        _print({"ok": False, "exit_code": COULD_NOT_RUN, "error": told})
    return typer.Exit(COULD_NOT_RUN)


def _print(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
