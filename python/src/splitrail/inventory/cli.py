"""`splitrail inventory`: check inventories before a host is contacted."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from splitrail.inventory.check import check as check_inventory
from splitrail.inventory.fault import Fault, InventoryError
from splitrail.inventory.vocabulary import document, load
from splitrail.project import Project, ProjectError

app = typer.Typer(no_args_is_help=True, help="Inventories: checked before a host is contacted.")

Inventories = Annotated[
    list[str] | None,
    typer.Option(
        "-i", "--inventory", help="Inventory folder or file, may be repeated; by default ansible.cfg's."
    ),
]


@app.command()
def check(
    inventory: Inventories = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")
    ] = False,
) -> None:
    """Name everything that is wrong with an inventory: file, key, host, what is allowed, and the cure."""
    console = Console(stderr=as_json, highlight=False)
    faults: list[Fault] = []
    try:
        project = Project.find(Path.cwd())
        for source in [project.inventory(name) for name in inventory or (None,)]:
            try:
                found = check_inventory(project, source)
            except InventoryError as error:
                faults += error.faults
            else:
                console.print(Text(f"ok   {found.shown}: {len(found.hosts)} hosts"), soft_wrap=True)
    except ProjectError as error:
        raise _could_not_run("check", error) from error
    for fault in faults:
        console.print(Text(f"FAIL {fault}"), soft_wrap=True)
    if as_json:
        document_ = {
            "ok": not faults,
            "exit_code": int(bool(faults)),
            "faults": [asdict(fault) for fault in faults],
        }
        sys.stdout.write(json.dumps(document_, indent=1) + "\n")
    raise typer.Exit(int(bool(faults)))


@app.command()
def schema() -> None:
    """Print the JSON schema (draft 2020-12) of variable files, made of the roles' specs, for editors."""
    try:
        made = document(load(Project.find(Path.cwd()).root))
    except ProjectError as error:
        raise _could_not_run("schema", error) from error
    sys.stdout.write(json.dumps(made, indent=1) + "\n")


def _could_not_run(command: str, error: Exception) -> typer.Exit:
    Console(stderr=True).print(Text(f"splitrail inventory {command}: {error}", style="red"), soft_wrap=True)
    return typer.Exit(2)
