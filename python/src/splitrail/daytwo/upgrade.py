"""`splitrail upgrade`: another release of the serving stack, and back where it does not come to serve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from splitrail.daytwo.cli import Inventory, Json, could_not_run, print_json, refused
from splitrail.inventory.before import given
from splitrail.inventory.check import check as check_inventory
from splitrail.inventory.fault import InventoryError
from splitrail.inventory.resolve import Fleet
from splitrail.project import Project, ProjectError
from splitrail.release import ReleaseError, load
from splitrail.run.execute import INTERRUPTED, OK, Report, execute, summarize
from splitrail.run.playbook import CannotRun, Options, Step

# Beside what serves: nothing of it is interrupted.
PREPARE = ("image", "validate")
# What OpenAI's own clients wait for an answer by default.
HOLD_S = 600
# One Ray cluster is of one version, and prefill and decode exchange KV caches: all nodes change at once.
SWITCH = ("down", "cluster", "serve", "smoke")


def upgrade(
    *,
    to: Annotated[str, typer.Option("--to", help="A file of inventories/releases, without its ending.")],
    inventory: Inventory = None,
    extra_vars: Annotated[
        list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Predict, change nothing.")] = False,
    as_json: Json = False,
    hold: Annotated[
        int,
        typer.Option(min=0, help="Seconds that a request may wait for the other release; 0: it fails."),
    ] = HOLD_S,
    verbose: Annotated[int, typer.Option("-v", count=True, help="Show Ansible's own output.")] = 0,
) -> None:
    """Build and prove another release beside what serves, then serve with it; requests wait meanwhile.

    Where it does not come to serve, what served before is brought back (exit code 1).
    """
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        told = (*(extra_vars or ()), json.dumps({"down_hold_s": hold}))
        options = Options(project.inventory(inventory), extra_vars=told, check=check, verbosity=verbose)
        before = current(project, options)
        after = chosen(project, to)
        if before.get("platform") != after.get("platform"):
            raise refused(
                "upgrade",
                f"release {to} is for {after.get('platform')}, and the cluster for {before.get('platform')}",
            )
        for line in plan(str(before.get("name")), to, hold):
            console.print(Text(line), soft_wrap=True)
        report = _run(project, "upgrade", (PREPARE, SWITCH), options=options, release=after, console=console)
        summarize(report, console)
        if report.code not in (OK, INTERRUPTED) and not check:
            _back(project, options, before, report, console)
    except (CannotRun, InventoryError, ProjectError, ReleaseError) as error:
        raise could_not_run("upgrade", error, as_json=as_json) from error
    for line in afterwards(report, str(before.get("name")), to, check=check):
        console.print(Text(line), soft_wrap=True)
    if as_json:
        print_json(report.document())
    raise typer.Exit(report.code)


def current(project: Project, options: Options) -> dict[str, Any]:
    """The release that the inventory declares. Raises CannotRun where that cannot be told."""
    found = check_inventory(project, options.inventory, given(options.extra_vars))
    release = Fleet(found)[next(iter(found.hosts))].get("release")
    if not isinstance(release, dict):
        raise CannotRun(f"{options.inventory}: `release` cannot be told: write it as the shipped ones do")
    return release


def chosen(project: Project, name: str) -> dict[str, Any]:
    """A release by its name. Raises CannotRun for one that there is not, ReleaseError for a bad one."""
    path = project.root / f"inventories/releases/{name}.yml"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in path.parent.glob("*.yml")))
        raise CannotRun(f"no release {name}; there are: {there}")
    load(path)
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def plan(before: str, after: str, hold: int) -> list[str]:
    """What is going to happen, in words; a request may wait ``hold`` seconds."""
    meanwhile = f"wait at the entrance, each for {hold} s at most," if hold else "fail"
    return [
        f"plan: {before} -> {after}",
        f"  1. {', '.join(PREPARE)}: the image is built, brought and proven beside what serves",
        f"  2. {', '.join(SWITCH)}: those under way end; new ones {meanwhile} until it serves",
        f"  where 1 fails nothing has changed; where 2 fails, {before} is brought back",
    ]


def afterwards(report: Report, before: str, after: str, *, check: bool) -> list[str]:
    """What is left to do for whoever started it."""
    if check:
        return []
    if report.code == OK:
        return [
            f"{after} serves. Write it into the inventory (release, in group_vars/all/main.yml), or the next "
            f"run goes back; to go back on purpose: splitrail upgrade --to {before}"
        ]
    if report.code == INTERRUPTED:
        return [f"go on: splitrail upgrade --to {after}; or back: splitrail upgrade --to {before}"]
    return []


def _run(
    project: Project,
    verb: str,
    parts: tuple[tuple[str, ...], ...],
    *,
    options: Options,
    release: dict[str, Any],
    console: Console,
) -> Report:
    steps = [Step(tuple(project.playbook(f"playbooks/{one}.yml") for one in part)) for part in parts]
    told = replace(options, extra_vars=(*options.extra_vars, json.dumps({"release": release})))
    playbook = f"playbooks/{parts[0][0]}.yml"
    report = execute(project, verb, playbook, told, resume=False, console=console, steps=steps)
    # It is begun anew, and goes on where it was by itself: what is done changes nothing.
    return replace(report, resume=None)


def _back(
    project: Project, options: Options, before: dict[str, Any], report: Report, console: Console
) -> None:
    """Bring back what served. The proof of its image was withdrawn by the other's, so it is made again."""
    served_on = report.run.failed_verb in (None, *PREPARE)
    parts = ("validate",) if served_on else ("validate", "cluster", "serve", "smoke")
    console.print(Text(f"back to {before.get('name')}: {', '.join(parts)}", "bold red"), soft_wrap=True)
    back = _run(project, "upgrade-back", (parts,), options=options, release=before, console=console)
    summarize(back, console)
