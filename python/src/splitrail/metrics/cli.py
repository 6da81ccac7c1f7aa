"""`splitrail top`: what the engines do now."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from splitrail.metrics.collect import Collect, CollectError, of_cluster, of_urls
from splitrail.metrics.show import screen, write_page
from splitrail.metrics.text import MetricsError
from splitrail.metrics.warn import warnings
from splitrail.metrics.window import Window, window
from splitrail.project import Project, ProjectError
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK
from splitrail.run.playbook import Options

# Windows that the page draws: an hour of the default ones.
KEPT = 240


def top(
    *,
    inventory: Annotated[
        str | None,
        typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's."),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url", help="Read these exporters instead, such as http://host:8000; may be repeated."
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(help="Between two readings. Ray renews its metrics every 10 s.", min=1),
    ] = 15,
    once: Annotated[bool, typer.Option("--once", help="Show one window, then end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document a window on stdout; all else on stderr.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a status page, each time anew.")] = None,
) -> None:
    """Show what the engines do: ratio, TTFT, TPOT, queues, KV caches and their transfers, and warnings."""
    console = Console(stderr=as_json, highlight=False)
    try:
        collect, cluster = _source(inventory, url)
        code = _follow(collect, console, seconds=seconds, once=once, as_json=as_json, page=(html, cluster))
    except KeyboardInterrupt:
        code = OK
    except (CollectError, MetricsError, ProjectError) as error:
        console.print(Text(f"splitrail top: {error}", style="red"), soft_wrap=True)
        if as_json:
            _print({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(error)})
        raise typer.Exit(COULD_NOT_RUN) from error
    raise typer.Exit(code)


def _source(inventory: str | None, urls: list[str] | None) -> tuple[Collect, str]:
    if urls:
        return of_urls(urls), ", ".join(urls)
    project = Project.find(Path.cwd())
    options = Options(inventory=project.inventory(inventory))
    return of_cluster(project, options), Path(options.inventory).name


def _follow(
    collect: Collect,
    console: Console,
    *,
    seconds: float,
    once: bool,
    as_json: bool,
    page: tuple[Path | None, str],
) -> int:
    """Window after window until interrupted; returns the exit code of the last one."""
    html, cluster = page
    before = collect()
    kept: list[Window] = []
    live = console.is_terminal and not (once or as_json)
    with Live(console=console, auto_refresh=False, screen=live, transient=not live) as display:
        while True:
            time.sleep(seconds)
            after = collect()
            # A node's clock that was set back would make the window empty.
            now = window(before if after.at > before.at else None, after)
            before = after
            kept = [*kept, now][-KEPT:]
            found = warnings(now, after.transport)
            if html:
                write_page(html, kept, found, cluster, 0 if once else seconds)
            if as_json:
                _print({"ok": not found, **now.document(), "warnings": found})
            elif live:
                display.update(screen(now, found), refresh=True)
            else:
                console.print(screen(now, found))
            if once:
                return FAILED if found else OK


def _print(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
