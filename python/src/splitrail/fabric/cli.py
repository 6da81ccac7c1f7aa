"""`splitrail fabric`: the commands."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="The RoCE fabric: prove it, and see where it drifted.")


@app.callback()
def _group() -> None:
    """Keep the commands below a name of their own, also while there is only one."""
