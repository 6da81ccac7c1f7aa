"""`splitrail fabric`: the commands."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from splitrail.fabric import drift as nic_drift
from splitrail.fabric.mesh_checks import judge
from splitrail.fabric.mesh_data import RESULT, MeshError, Result
from splitrail.fabric.report import draw, show
from splitrail.fabric.thresholds import load as load_thresholds
from splitrail.project import Project, ProjectError
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK, execute, summarize
from splitrail.run.playbook import CannotRun, Options

app = typer.Typer(no_args_is_help=True, help="The RoCE fabric: prove it, and see where it drifted.")

Inventory = Annotated[
    str | None, typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]


@app.callback()
def _group() -> None:
    """Keep the commands below a name of their own, also while there is only one."""


@app.command()
def prove(
    *,
    inventory: Inventory = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the last proof that did not end ok; what was well counts."),
    ] = False,
    limit: Annotated[str | None, typer.Option("--limit", help="Only these hosts or groups.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=1,
            help="Measure each node over RDMA with this many peers, not with all. TCP: always with all.",
        ),
    ] = None,
    extra_vars: Annotated[
        list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
    ] = None,
    as_json: Json = False,
    verbose: Annotated[
        int, typer.Option("-v", count=True, help="Show Ansible's own output; more with -vv.")
    ] = 0,
) -> None:
    """Prove the fabric as it is: look at every rail, then measure every pair of nodes. Mends nothing."""
    own: dict[str, Any] = {"fabric_prove_only": True}
    if sample is not None:
        own |= {"rdma_fabric_mesh": "sample", "rdma_fabric_sample": sample}
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        options = Options(
            inventory=project.inventory(inventory),
            limit=limit,
            extra_vars=(*(extra_vars or ()), json.dumps(own)),
            verbosity=verbose,
        )
        report = execute(project, "fabric", "playbooks/fabric.yml", options, resume=resume, console=console)
    except (CannotRun, ProjectError) as error:
        raise _could_not_run("prove", error, as_json=as_json) from error
    if report.resume:
        again = ["splitrail", "fabric", "prove", "-i", options.inventory, "--resume"]
        again += ["--sample", str(sample)] if sample is not None else []
        report = replace(report, resume=shlex.join(again) + (" (and the same -e)" if extra_vars else ""))
    summarize(report, console)
    if (report.folder / RESULT).exists():
        _show(report.folder, console)
    if as_json:
        sys.stdout.write(json.dumps(report.document(), indent=1) + "\n")
    raise typer.Exit(report.code)


@app.command("report")
def report_mesh(
    run: Annotated[
        str | None, typer.Argument(help="A run record: its folder or name; by default the newest mesh.")
    ] = None,
) -> None:
    """Draw the mesh of a run record again, and show it."""
    try:
        project = Project.find(Path.cwd())
        ok = _show(_record(project, run), Console(highlight=False))
    except (ProjectError, MeshError) as error:
        raise _could_not_run("report", error, as_json=False) from error
    raise typer.Exit(OK if ok else FAILED)


@app.command()
def drift(
    *,
    inventory: Inventory = None,
    limit: Annotated[str | None, typer.Option("--limit", help="Only these hosts or groups.")] = None,
    extra_vars: Annotated[
        list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
    ] = None,
    as_json: Json = False,
    verbose: Annotated[
        int, typer.Option("-v", count=True, help="Show Ansible's own output; more with -vv.")
    ] = 0,
) -> None:
    """Compare every NIC with what the inventory declares, and change nothing."""
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        options = Options(project.inventory(inventory), limit, tuple(extra_vars or ()), verbosity=verbose)
        report = execute(project, "drift", "playbooks/drift.yml", options, resume=False, console=console)
    except (CannotRun, ProjectError) as error:
        raise _could_not_run("drift", error, as_json=as_json) from error
    rows = nic_drift.rows(report.verdict) if report.verdict else []
    if report.verdict is None or report.code not in {OK, FAILED}:
        summarize(replace(report, resume=None), console)
    code = nic_drift.judge(report.code, rows)
    if rows:
        nic_drift.show(rows, console)
    elif code == COULD_NOT_RUN:
        console.print(Text("no NIC was compared: declare roce_nic_rails in the inventory", style="red"))
    if as_json:
        found = {**report.document(), "ok": code == OK, "exit_code": code, "nics": nic_drift.document(rows)}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    raise typer.Exit(code)


def _record(project: Project, run: str | None) -> Path:
    """The record's folder. Raises MeshError when there is no such record with a mesh."""
    if run is None:
        found = sorted(project.runs.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise MeshError(f"no mesh is recorded in {project.runs}: run `splitrail fabric prove`")
        return found[-1].parents[1]
    return folder if (folder := Path(run)).is_dir() else project.runs / run


def _show(folder: Path, console: Console) -> bool:
    """The picture and table of a record; whether its mesh passed. Raises MeshError."""
    result = Result.load(folder)
    rows = load_thresholds(result.own_thresholds)
    judgement = judge(result, rows)
    path = draw(folder, result, judgement, rows)
    show(result, judgement, console)
    console.print(Text(f"picture: {path}"), soft_wrap=True)
    return all(check["ok"] for checks in judgement.checks.values() for check in checks)


def _could_not_run(command: str, error: Exception, *, as_json: bool) -> typer.Exit:
    Console(stderr=True).print(Text(f"splitrail fabric {command}: {error}", style="red"), soft_wrap=True)
    if as_json:
        sys.stdout.write(
            json.dumps({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(error)}, indent=1) + "\n"
        )
    return typer.Exit(COULD_NOT_RUN)
