"""`splitrail reset`: show what would be deleted, ask, and delete exactly that."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from splitrail.daytwo.cli import Inventory, Json, could_not_run, print_json, refused
from splitrail.project import Project, ProjectError
from splitrail.run.execute import OK, Report, execute, summarize
from splitrail.run.playbook import CannotRun, Options
from splitrail.run.status import ask

PREVIEW = "playbooks/reset_preview.yml"
PLAYBOOK = "playbooks/reset.yml"
Items = Mapping[str, Sequence[Mapping[str, Any]]]


def reset(
    *,
    inventory: Inventory = None,
    models: Annotated[bool, typer.Option("--models", help="Delete the models' weights too.")] = False,
    confirm: Annotated[
        str | None, typer.Option("--confirm", help="The cluster's name, in place of typing it.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what it would delete, and end there.")] = False,
    extra_vars: Annotated[
        list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
    ] = None,
    as_json: Json = False,
    verbose: Annotated[int, typer.Option("-v", count=True, help="Show Ansible's own output.")] = 0,
) -> None:
    """Stop serving and delete all that it left on the hosts, after showing it and asking for the name.

    Packages, driver, NICs and tuning stay: `splitrail up` serves again. Exit code 1 without the confirmation.
    """
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        options = Options(project.inventory(inventory), extra_vars=tuple(extra_vars or ()), verbosity=verbose)
        cluster, items = look(project, options, models=models)
        for line in preview(items):
            console.print(Text(line), soft_wrap=True)
        if check:
            if as_json:
                print_json({"ok": True, "exit_code": OK, "cluster": cluster, "items": items})
            raise typer.Exit(OK)
        require_name("reset", cluster, confirm, console)
        report = wipe(project, options, items, cluster, models=models, console=console)
    except (CannotRun, ProjectError) as error:
        raise could_not_run("reset", error, as_json=as_json) from error
    summarize(report, console)
    if as_json:
        print_json(report.document())
    raise typer.Exit(report.code)


def look(project: Project, options: Options, *, models: bool) -> tuple[str, Items]:
    """The cluster's name, and what a reset would delete by host. Raises CannotRun without an answer."""
    found, why = ask(project, PREVIEW, _with(options, {"reset_models": models}), "splitrail_reset")
    if found is None:
        raise CannotRun(str(why))
    return str(found["cluster"]), found["hosts"]


def require_name(command: str, cluster: str, confirm: str | None, console: Console) -> None:
    """Ask for the cluster's name, unless it is given. Raises typer.Exit for another one."""
    if confirm is None:
        console.print(Text(f"type the cluster's name to delete this ({cluster}): "), end="")
        confirm = sys.stdin.readline().strip()
    if confirm != cluster:
        raise refused(command, f"nothing was deleted: the confirmation is the cluster's name, {cluster}")


def wipe(
    project: Project, options: Options, items: Items, cluster: str, *, models: bool, console: Console
) -> Report:
    """Stop what serves on the hosts of the options, and delete exactly these items."""
    own = {"reset_models": models, "reset_items": items, "reset_confirmed": cluster}
    report = execute(project, "reset", PLAYBOOK, _with(options, own), resume=False, console=console)
    # It is begun anew: it shows first what is left.
    return replace(report, resume=None)


def preview(found: Items, *, last: bool = True) -> list[str]:
    """The lines that say what would be deleted where; ``last``: nothing serves afterwards."""
    lines = []
    for host, items in sorted(found.items()):
        total = sum(int(item["bytes"]) for item in items)
        lines.append(f"{host}: {len(items)} things, {_amount(total)}" if items else f"{host}: nothing")
        lines += [f"  {item['kind']:6} {item['name']}  {_amount(int(item['bytes']))}" for item in items]
    if last:
        lines.append("application, entrance and Ray are stopped first: every request fails from then on")
    return lines


def _amount(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _with(options: Options, own: Mapping[str, Any]) -> Options:
    return replace(options, extra_vars=(*options.extra_vars, json.dumps(dict(own))))
