"""`splitrail canary`, `rollback`, `rebalance` and `diff`: the commands."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.metrics.collect import CollectError, of_cluster
from splitrail.project import Project, ProjectError
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK, Report, execute, summarize
from splitrail.run.playbook import CannotRun, Options
from splitrail.run.status import ask
from splitrail.serving.auto import Ratio, load_policy
from splitrail.serving.auto_run import NoRatio, automatic
from splitrail.serving.judge import Rules, judge
from splitrail.workload import WorkloadError

CANARY = "playbooks/canary.yml"
REBALANCE = "playbooks/rebalance.yml"
PATIENCE_S = 3600
# Between two looks at a canary; it takes many requests to judge it.
_LOOK_S = 15

canary = typer.Typer(
    no_args_is_help=True, help="A new version beside the one that runs, for a part of the requests."
)

Inventory = Annotated[
    str | None, typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Check = Annotated[bool, typer.Option("--check", help="Predict, change nothing.")]
ExtraVars = Annotated[
    list[str] | None,
    typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE (for secrets)."),
]
Verbose = Annotated[int, typer.Option("-v", count=True, help="Show Ansible's own output; more with -vv.")]
Requests = Annotated[
    int, typer.Option("--requests", min=1, help="Answered by the canary before it is judged.")
]
ErrorShare = Annotated[float, typer.Option("--error-share", min=0, max=1, help="Most that may have failed.")]
Latency = Annotated[
    float, typer.Option("--latency-factor", min=1, help="How much longer than the live one its p90s may be.")
]
Patience = Annotated[int, typer.Option("--patience", min=1, help="Seconds to wait for its requests.")]


@canary.command()
def start(
    *,
    inventory: Inventory = None,
    weight: Annotated[
        int, typer.Option("--weight", min=1, max=99, help="Percentage of the requests it gets.")
    ] = 10,
    auto: Annotated[
        bool, typer.Option("--auto", help="Judge it then, as `splitrail canary judge` does.")
    ] = False,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Deploy what the inventory (and -e) says beside the live application, for a part of the requests."""
    own = {"canary_action": "start", "canary_weight": weight}
    asked = Asked(inventory, extra_vars, as_json, check, verbose)
    judged = auto and not check
    code = _verb(asked, "canary", CANARY, own, more=judged)
    if code == OK and judged:
        code = _judge(asked, Rules(), PATIENCE_S)
    raise typer.Exit(code)


@canary.command()
def status(inventory: Inventory = None, extra_vars: ExtraVars = None, as_json: Json = False) -> None:
    """Show what both slots answered since the canary began."""
    raise typer.Exit(_show(Asked(inventory, extra_vars, as_json)))


@canary.command("judge")
def judge_canary(
    *,
    inventory: Inventory = None,
    requests: Requests = Rules.requests,
    error_share: ErrorShare = Rules.error_share,
    latency_factor: Latency = Rules.latency_factor,
    patience: Patience = PATIENCE_S,
    extra_vars: ExtraVars = None,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Promote the canary once it has answered enough, or abort it when it is worse than the live one."""
    rules = Rules(requests, error_share, latency_factor)
    raise typer.Exit(_judge(Asked(inventory, extra_vars, as_json, verbose=verbose), rules, patience))


@canary.command()
def promote(
    *,
    inventory: Inventory = None,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Send the canary all requests, and take the other away once it has none left."""
    own = {"canary_action": "promote"}
    raise typer.Exit(_verb(Asked(inventory, extra_vars, as_json, check, verbose), "canary", CANARY, own))


@canary.command()
def abort(
    *,
    inventory: Inventory = None,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Send the canary no more requests, and take it away once it has none left."""
    own = {"canary_action": "abort"}
    raise typer.Exit(_verb(Asked(inventory, extra_vars, as_json, check, verbose), "canary", CANARY, own))


def rollback(
    *,
    inventory: Inventory = None,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Go back to what was served before the last deploy."""
    playbook = "playbooks/rollback.yml"
    raise typer.Exit(_verb(Asked(inventory, extra_vars, as_json, check, verbose), "rollback", playbook, {}))


def rebalance(
    *,
    to: Annotated[
        str | None, typer.Option("--to", help="The ratio: 2P2D, or 3agg for aggregated engines.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Watch the engines and move one when the policy says so.")
    ] = False,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="For --auto: SLA and limits, a YAML file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="For --auto: say what it would do, and do nothing.")
    ] = False,
    inventory: Inventory = None,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Change how many engines prefill and decode, while they serve: what stays is not restarted."""
    asked = Asked(inventory, extra_vars, as_json, check, verbose)
    if auto == (to is not None) or (auto and policy is None):
        raise _could_not_run("rebalance", "write --to RATIO, or --auto --policy FILE", as_json=as_json)
    if auto and policy:
        _rebalance_by_itself(asked, policy, dry_run=dry_run or check)
    own = {"rebalance_to": to}
    raise typer.Exit(_verb(asked, "rebalance", REBALANCE, own))


def _rebalance_by_itself(asked: Asked, policy: Path, *, dry_run: bool) -> None:
    """Follow the policy until interrupted; a ratio that could not be made so ends it."""

    def apply(ratio: Ratio) -> None:
        report = run(project, REBALANCE, asked.options(project), {"rebalance_to": str(ratio)}, asked.console)
        if report.code != OK:
            summarize(report, asked.console)
            raise typer.Exit(report.code)

    def say(text: str) -> None:
        asked.console.print(Text(text), soft_wrap=True)

    try:
        rules = load_policy(policy)
        project = Project.find(Path.cwd())
        collect = of_cluster(project, asked.options(project))
        automatic(collect, _look(asked)["live"], rules, apply, say=say, dry_run=dry_run)
    except KeyboardInterrupt:
        raise typer.Exit(OK) from None
    except (CannotRun, CollectError, NoRatio, ProjectError, WorkloadError) as error:
        raise _could_not_run("rebalance", error, as_json=asked.as_json) from error


def diff(inventory: Inventory = None, extra_vars: ExtraVars = None, as_json: Json = False) -> None:
    """Show how what runs differs from what the inventory declares; exit code 1 when it does."""
    try:
        project = Project.find(Path.cwd())
        options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
        found, why = ask(project, "playbooks/diff.yml", options, "splitrail_diff")
    except ProjectError as error:
        found, why = None, str(error)
    if found is None:
        raise _could_not_run("diff", why, as_json=as_json)
    runs, declared = (str(found[side]).splitlines(keepends=True) for side in ("runs", "declared"))
    lines = list(difflib.unified_diff(runs, declared, "runs", "declared"))
    code = FAILED if lines else OK
    if as_json:
        _print_json({"ok": code == OK, "exit_code": code, "diff": "".join(lines)})
    else:
        sys.stdout.write("".join(lines))
    raise typer.Exit(code)


def run(
    project: Project, playbook: str, options: Options, own: Mapping[str, Any], console: Console
) -> Report:
    """Run a playbook that changes what is served; ``own`` are variables of its own. Raises CannotRun.

    ``run(project, REBALANCE, options, {"rebalance_to": "1P2D"}, console)`` changes the ratio.
    """
    options = replace(options, extra_vars=(*options.extra_vars, json.dumps(dict(own))))
    report = execute(project, Path(playbook).stem, playbook, options, resume=False, console=console)
    # These verbs are begun anew; they go on where they were by themselves.
    return replace(report, resume=None)


@dataclass(frozen=True)
class Asked:
    """What every command is told."""

    inventory: str | None
    extra_vars: list[str] | None
    as_json: bool
    check: bool = False
    verbose: int = 0

    def options(self, project: Project) -> Options:
        """The same for a run."""
        return Options(
            inventory=project.inventory(self.inventory),
            extra_vars=tuple(self.extra_vars or ()),
            check=self.check,
            verbosity=self.verbose,
        )

    @property
    def console(self) -> Console:
        """Where people read; not standard output, where that is for JSON."""
        return Console(stderr=self.as_json, highlight=False)


def _verb(asked: Asked, verb: str, playbook: str, own: Mapping[str, Any], *, more: bool = False) -> int:
    """Run a verb and tell how it ended; its exit code. more: another report follows where it ended well."""
    try:
        project = Project.find(Path.cwd())
        report = run(project, playbook, asked.options(project), own, asked.console)
    except (CannotRun, ProjectError) as error:
        raise _could_not_run(verb, error, as_json=asked.as_json) from error
    summarize(report, asked.console)
    if asked.as_json and not (more and report.code == OK):
        _print_json(report.document())
    return report.code


def _look(asked: Asked) -> dict[str, Any]:
    """What both slots answered, as playbooks/canary.yml hands it out. Raises typer.Exit without an answer."""
    try:
        project = Project.find(Path.cwd())
        options = replace(asked.options(project), check=False)
        options = replace(options, extra_vars=(*options.extra_vars, json.dumps({"canary_action": "status"})))
        found, why = ask(project, CANARY, options, "splitrail_canary")
    except ProjectError as error:
        found, why = None, str(error)
    if found is None:
        raise _could_not_run("canary", why, as_json=asked.as_json)
    return found


def _show(asked: Asked) -> int:
    found = _look(asked)
    if asked.as_json:
        _print_json({"ok": True, "exit_code": OK, **found})
        return OK
    table = Table(box=None, pad_edge=False)
    for title in ("application", "is", "ratio", "share", "requests", "errors", "first byte p50/p90", "whole"):
        table.add_column(title)
    for part in ("live", "canary"):
        app = found[part]
        if app is None:
            continue
        slot, share = found["slots"][app["slot"]], int(found["share_b"])
        times = [[slot[f"{name}_p{part}_ms"] for part in (50, 90)] for name in ("first_byte", "e2e")]
        table.add_row(
            app["name"],
            part,
            ", ".join(f"{count} {pool}" for pool, count in app["ratio"].items()),
            f"{share if app['slot'] == 'b' else 100 - share} %",
            str(slot["requests"]),
            str(slot["errors"]),
            *("-" if None in pair else "/".join(f"{ms:.0f}" for ms in pair) + " ms" for pair in times),
        )
    asked.console.print(table)
    if found["canary"] is None:
        asked.console.print("no canary runs")
    return OK


def _judge(asked: Asked, rules: Rules, patience_s: float) -> int:
    """Look until a judgement is possible, or for patience_s seconds, and do what it says; the exit code."""
    deadline, said = time.monotonic() + patience_s, ""
    while True:
        found = _look(asked)
        if found["canary"] is None:
            raise _could_not_run("canary judge", "no canary runs", as_json=asked.as_json)
        canary_slot, live_slot = (found["slots"][found[part]["slot"]] for part in ("canary", "live"))
        judgement = judge(canary_slot, live_slot, rules)
        if judgement.reason != said:
            said = judgement.reason
            asked.console.print(Text(f"{judgement.decision}: {said}"), soft_wrap=True)
        if judgement.decision != "wait":
            break
        if time.monotonic() > deadline:
            asked.console.print(Text(f"undecided after {patience_s:g} s; the canary runs on"), soft_wrap=True)
            return FAILED
        time.sleep(_LOOK_S)
    code = _verb(asked, "canary", CANARY, {"canary_action": judgement.decision})
    # A canary that was not good enough is a failed check.
    return FAILED if code == OK and judgement.decision == "abort" else code


def _could_not_run(command: str, why: Exception | str | None, *, as_json: bool) -> typer.Exit:
    Console(stderr=True).print(Text(f"splitrail {command}: {why}", style="red"), soft_wrap=True)
    if as_json:
        _print_json({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(why)})
    return typer.Exit(COULD_NOT_RUN)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
