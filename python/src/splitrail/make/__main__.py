"""`python -m splitrail.make`: one command a target of the Makefile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from splitrail.lab.run import LabError
from splitrail.make import check as checks
from splitrail.make import lab as labs
from splitrail.make import test as tests
from splitrail.project import Project

app = typer.Typer(no_args_is_help=True, help="What the Makefile's targets do.")
_console = Console(highlight=False)


@app.command()
def lab(
    began: Annotated[float, typer.Option(help="When the target was started, seconds since 1970.")],
) -> None:
    """Make the lab and bring it up."""
    raise typer.Exit(labs.lab(_root(), _console, began))


@app.command()
def check() -> None:
    """Everything that can be found wrong without a machine."""
    raise typer.Exit(checks.check(_root(), _console))


@app.command()
def test(
    scenarios: Annotated[list[str] | None, typer.Argument(help="Only these Molecule scenarios.")] = None,
) -> None:
    """Everything that needs machines."""
    try:
        raise typer.Exit(tests.test(_root(), _console, scenarios or ()))
    except (tests.UnknownScenario, LabError) as error:
        typer.echo(f"make test: {error}", err=True)
        raise typer.Exit(2) from error


def _root() -> Path:
    return Project.find(Path.cwd()).root


app()
