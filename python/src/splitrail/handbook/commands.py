"""A page a command, from the help that the command line itself shows."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command


def pages(app: typer.Typer, program: str) -> dict[str, str]:
    """Markdown by command, of all of a command line's."""
    group = get_command(app)
    context = typer.Context(group, info_name=program)
    found = {}
    for name, command in sorted(getattr(group, "commands", {}).items()):
        text = get_docs_for_click(obj=command, ctx=context, name=name, call_prefix=program)
        # Examples as code; the help has them a paragraph each.
        found[name] = re.sub(rf"^({program} .*)$", r"    \1", text, flags=re.MULTILINE)
    return found
