"""The command line. Each command is thin: the work is in the modules that it names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.bench.cli import app as bench_app
from splitrail.bundle.cli import app as bundle_app
from splitrail.daytwo import quarantine
from splitrail.daytwo.cli import quarantine_app
from splitrail.daytwo.nodes import add, drain, remove, undrain
from splitrail.daytwo.reset import reset
from splitrail.daytwo.upgrade import upgrade
from splitrail.discover_cli import discover
from splitrail.fabric.cli import app as fabric_app
from splitrail.inventory.cli import app as inventory_app
from splitrail.lab.cli import app as lab_app
from splitrail.manual import Suite
from splitrail.metrics.cli import top
from splitrail.plan.cli import app as plan_app
from splitrail.project import Project, ProjectError
from splitrail.proof import ProofError, check_reason
from splitrail.release_cli import app as release_app
from splitrail.render import INDEX, RenderError, render
from splitrail.report.cli import report
from splitrail.run import status as run_status
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK, execute, summarize
from splitrail.run.history_cli import app as runs_app
from splitrail.run.playbook import CannotRun, Options
from splitrail.serving.cli import canary, diff, rebalance, rollback

app = typer.Typer(
    cls=Suite,
    no_args_is_help=True,
    # A traceback with local variables would show extra variables, and with them secrets.
    pretty_exceptions_show_locals=False,
    help="From bare GPU nodes to proven prefill-decode serving.",
)
# Sub-commands: one line each.
app.add_typer(lab_app, name="lab")
app.add_typer(fabric_app, name="fabric")
app.add_typer(release_app, name="release")
app.add_typer(plan_app, name="plan")
app.add_typer(bundle_app, name="bundle")
app.add_typer(bench_app, name="bench")
app.command()(report)
app.command("top")(top)
app.add_typer(canary, name="canary")
for _command in (rollback, rebalance, diff):
    app.command()(_command)
app.add_typer(inventory_app, name="inventory")
app.add_typer(runs_app, name="runs")
app.add_typer(quarantine_app, name="quarantine")
app.command()(drain)
app.command()(undrain)
app.command()(add)
app.command()(remove)
app.command()(upgrade)
app.command()(reset)
app.command()(discover)

Inventory = Annotated[
    str | None, typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Check = Annotated[bool, typer.Option("--check", help="Predict, change nothing.")]
Limit = Annotated[str | None, typer.Option("--limit", help="Only these hosts or groups.")]
ExtraVars = Annotated[
    list[str] | None,
    typer.Option(
        "-e",
        "--extra-vars",
        help="key=value, a YAML mapping, or @FILE. Ansible gets them in files of mode 0600. "
        "Give secrets as @FILE: other users can see this command's own line.",
    ),
]
Tags = Annotated[list[str] | None, typer.Option("--tags", help="Only tasks with these tags.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the last run of this inventory that did not end ok.")
]
Waive = Annotated[
    str | None,
    typer.Option(
        "--waive",
        help="Start without a proof of the fabric, for this reason in words. It goes into the run record.",
    ),
]
Verbose = Annotated[int, typer.Option("-v", count=True, help="Show Ansible's own output; more with -vv.")]

VERBS = {
    "up": ("site.yml", "The whole bring-up: from bare hosts to proven serving."),
    "validate": (
        "playbooks/validate.yml",
        "Prove the transport through the image's own UCX and NIXL.",
    ),
    "serve": ("playbooks/serve.yml", "Deploy what the topology says."),
    "smoke": ("playbooks/smoke.yml", "Prove that serving answers right, and that KV caches really move."),
    "kv": ("playbooks/kv.yml", "Compare the KV transfers since the deploy with what the fabric can do."),
    "down": ("playbooks/down.yml", "Stop serving and Ray."),
}


def _verb_command(verb: str, playbook: str) -> Callable[..., None]:
    def command(
        *,
        inventory: Inventory = None,
        as_json: Json = False,
        check: Check = False,
        limit: Limit = None,
        extra_vars: ExtraVars = None,
        tags: Tags = None,
        resume: Resume = False,
        waive: Waive = None,
        verbose: Verbose = 0,
    ) -> None:
        console = _console(as_json)
        try:
            project = Project.find(Path.cwd())
            options = Options(
                inventory=project.inventory(inventory),
                limit=limit,
                extra_vars=(*(extra_vars or ()), *_waiver(waive)),
                tags=tuple(tag.strip() for given in tags or () for tag in given.split(",")),
                check=check,
                verbosity=verbose,
            )
            report = execute(
                project, verb, playbook, options, resume=resume, console=console, go_on=verb == "up"
            )
        except (CannotRun, ProjectError) as error:
            raise _could_not_run(verb, error, as_json=as_json) from error
        summarize(report, console)
        if as_json:
            _print_json(report.document())
        raise typer.Exit(report.code)

    return command


for _verb, (_playbook, _help) in VERBS.items():
    app.command(_verb, help=_help)(_verb_command(_verb, _playbook))


@app.command()
def status(inventory: Inventory = None, as_json: Json = False, extra_vars: ExtraVars = None) -> None:
    """Show the last run of an inventory, what its cluster serves now, and which hosts are left out."""
    try:
        project = Project.find(Path.cwd())
        options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
        left_out = quarantine.load(options.inventory)
    except (ProjectError, quarantine.QuarantineError) as error:
        raise _could_not_run("status", error, as_json=as_json) from error
    last = run_status.last(project, options.inventory)
    serving, reason = run_status.serving(project, options)
    if serving is None:
        code = COULD_NOT_RUN
    else:
        code = OK if serving.get("ok", True) and (last is None or last["ok"]) else FAILED
    if as_json:
        told = {"last": last, "serving": serving, "error": reason, "quarantine": sorted(left_out)}
        _print_json({"ok": code == OK, "exit_code": code, **told})
    else:
        show_status(_console(as_json), last, serving, reason)
        for host, entry in left_out.items():
            _console(as_json).print(Text(f"in quarantine: {quarantine.line(host, entry)}"), soft_wrap=True)
    raise typer.Exit(code)


@app.command("render")
def render_files(
    inventory: Inventory = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; by default build/render/CLUSTER of the project."),
    ] = None,
    as_json: Json = False,
    extra_vars: ExtraVars = None,
) -> None:
    """Write every file that the roles would place into a folder, for review; contacts no host."""
    try:
        project = Project.find(Path.cwd())
        options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
        done = render(project, options, out)
    except (CannotRun, ProjectError, RenderError) as error:
        raise _could_not_run("render", error, as_json=as_json) from error
    if as_json:
        _print_json({"ok": True, "exit_code": OK, "folder": str(done.folder), **done.index})
        return
    console = _console(as_json)
    for host, count in done.per_host().items():
        console.print(Text(f"{host}: {count} files"))
    for part in done.index["unpinned"]:
        console.print(Text(f"not pinned in release {done.index['release']}: {part}"), soft_wrap=True)
    console.print(Text(f"written: {done.folder} ({INDEX} lists every file)"), soft_wrap=True)


def show_status(
    console: Console, last: dict[str, Any] | None, serving: dict[str, Any] | None, reason: str | None
) -> None:
    """Print what status found, for people; ``reason`` is why serving could not be asked."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    if last is None:
        say("last run: none is recorded")
    else:
        how = last["state"] if last["state"] != "ended" else "ok" if last["ok"] else "failed"
        say(f"last run: {last['verb']}, {how}, started {last['started']}, record {last['record']}")
        if last["failed_play"]:
            say(f"  failed in the play {last['failed_play']}: {', '.join(last['failed_hosts'])}")
        if last["error"]:
            say(f"  {last['error']}")
        if last["verdict"]:
            checks = last["verdict"]["checks"]
            say(f"  checks failed: {sum(not check['ok'] for check in checks)} of {len(checks)}")
        if last["resume"]:
            say(f"  go on with: {last['resume']}")
    if serving is None:
        say(f"serving: could not be asked: {reason}")
    else:
        show_serving(console, serving)


def show_serving(console: Console, serving: dict[str, Any]) -> None:
    """Print what playbooks/status.yml handed out: the endpoint, each deployment, and the nodes."""
    state = "running" if serving["ok"] else "not running as it should"
    console.print(Text(f"serving: {state}, at {serving['endpoint']}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("deployment", "state", "replicas", "on"):
        table.add_column(title, overflow="fold")
    for application in serving["applications"]:
        message = f": {application['message']}" if application["message"] else ""
        table.add_row(application["name"], application["status"] + message, "", "")
        for one in application["deployments"]:
            replicas = f"{one['running']} of {one['wanted']}"
            table.add_row(f"  {one['name']}", one["status"], replicas, ", ".join(one["nodes"]))
    if table.row_count:
        console.print(table)
    nodes = [
        f"{node['address']} ({', '.join(f'{name} {amount:g}' for name, amount in node['resources'].items())})"
        for node in serving["nodes"]
    ]
    console.print(Text(f"nodes: {', '.join(nodes) or 'none'}"), soft_wrap=True)


def _waiver(reason: str | None) -> list[str]:
    """The variable that carries a waiver to the roles. Raises CannotRun for a reason that is none."""
    if reason is None:
        return []
    try:
        return [json.dumps({"fabric_waiver": check_reason(reason)})]
    except ProofError as error:
        raise CannotRun(f"--waive: {error}") from error


def _could_not_run(command: str, error: Exception, *, as_json: bool) -> typer.Exit:
    Console(stderr=True).print(Text(f"splitrail {command}: {error}", style="red"), soft_wrap=True)
    if as_json:
        _print_json({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(error)})
    return typer.Exit(COULD_NOT_RUN)


def _console(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Entry point of the console script."""
    app()
