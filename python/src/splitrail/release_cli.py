"""`splitrail release`: check the releases."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from splitrail.project import Project, ProjectError
from splitrail.release import Release, ReleaseError, load, together

app = typer.Typer(no_args_is_help=True, help="Releases: the pins that must agree.")


@app.callback()
def _group() -> None:
    """Keep the commands below a name of their own, also while there is only one."""


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Release files; by default all of inventories/releases.")
    ] = None,
    one: Annotated[
        bool, typer.Option("--together", help="They are to serve one application: prefill and decode.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")
    ] = False,
) -> None:
    """Refuse releases that cannot work, and name what is not pinned."""
    console = Console(stderr=as_json, highlight=False)
    try:
        paths = files or sorted((Project.find(Path.cwd()).root / "inventories/releases").glob("*.yml"))
    except ProjectError as error:
        Console(stderr=True).print(Text(f"splitrail release check: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(2) from error
    good: dict[str, Release] = {}
    faults: list[str] = []
    for path in paths:
        try:
            good[path.name] = load(path)
        except ReleaseError as error:
            faults += str(error).splitlines()
    if one and not faults:
        try:
            together(good)
        except ReleaseError as error:
            faults += str(error).splitlines()
    open_parts = {name: [entry.model_dump() for entry in release.unpinned] for name, release in good.items()}
    for name, parts in open_parts.items():
        console.print(Text(f"ok   {name}: {len(parts)} parts not pinned"), soft_wrap=True)
        for part in parts:
            console.print(Text(f"     not pinned: {part['part']}: {part['why']}"), soft_wrap=True)
    for fault in faults:
        console.print(Text(f"FAIL {fault}"), soft_wrap=True)
    if as_json:
        document = {
            "ok": not faults,
            "exit_code": int(bool(faults)),
            "unpinned": open_parts,
            "faults": faults,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    raise typer.Exit(1 if faults else 0)
