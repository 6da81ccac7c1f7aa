"""`splitrail runs`: what was done, one run in full, two runs side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.project import Project, ProjectError
from splitrail.run.history import Difference, History, find, read
from splitrail.run.record import RecordError, newest_first
from splitrail.verdict import Check

app = typer.Typer(no_args_is_help=True, help="Run records: `list`, `show` one, `diff` two, `export` one.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Name = Annotated[
    str,
    typer.Argument(help="A run's name or its beginning, a folder, `last`, or `last~N` for the Nth before."),
]
_HOSTS = 4  # named in a line; of more the number is told


@app.command("list")
def list_runs(
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many, newest first.")] = 20,
    verb: Annotated[str | None, typer.Option("--verb", help="Only runs of this verb.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that did not end ok.")] = False,
    as_json: Json = False,
) -> None:
    """Show the newest runs, a line each."""
    found: list[dict[str, Any]] = []
    try:
        for folder, run in newest_first(Project.find(Path.cwd()).runs):
            if verb not in (None, run.verb) or (failed and run.ok):
                continue
            found.append(read(folder).line())
            if len(found) == count:
                break
    except (ProjectError, RecordError) as error:
        raise _could_not_run("list", error) from error
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "verb", "outcome", "seconds", "hosts", "changed", "checks failed"):
        table.add_column(
            title, overflow="fold", justify="left" if title in ("run", "verb", "outcome") else "right"
        )
    for line in found:
        seconds = "" if line["seconds"] is None else f"{line['seconds']:.0f}"
        verb_name = f"{line['verb']} (check)" if line["check_mode"] else line["verb"]
        failed_checks = f"{line['checks_failed']} of {line['checks']}" if line["checks"] else ""
        row = [
            line["run"],
            verb_name,
            line["outcome"],
            seconds,
            line["hosts"],
            line["changed"],
            failed_checks,
        ]
        table.add_row(*map(str, row), style="" if line["outcome"] == "ok" else "red")
    _console().print(table if found else Text("no runs"))


@app.command()
def show(
    run: Name = "last",
    slowest: Annotated[int, typer.Option("--slowest", min=0, help="How many of the slowest tasks.")] = 10,
    as_json: Json = False,
) -> None:
    """Show one run: how it ended, what it changed where, what took longest, which checks failed."""
    try:
        history = read(find(Project.find(Path.cwd()).runs, run))
    except (ProjectError, RecordError) as error:
        raise _could_not_run("show", error) from error
    if as_json:
        sys.stdout.write(json.dumps(history.document(slowest), indent=1) + "\n")
        return
    _show(history, slowest)


@app.command()
def diff(old: Name = "last~1", new: Name = "last", as_json: Json = False) -> None:
    """Show what the second run did otherwise than the first: settings, times, changes, checks that flipped.

    Exit code 1 when a check that passed in the first fails in the second.
    """
    try:
        runs = Project.find(Path.cwd()).runs
        difference = Difference(read(find(runs, old)), read(find(runs, new)))
    except (ProjectError, RecordError) as error:
        raise _could_not_run("diff", error) from error
    if as_json:
        sys.stdout.write(json.dumps(difference.document(), indent=1) + "\n")
    else:
        _show_difference(difference)
    raise typer.Exit(int(any(b is not None and not b.ok for _, _, b in difference.flipped())))


@app.command()
def export(
    run: Name = "last",
    endpoint: Annotated[
        str, typer.Option("--endpoint", help="Where an OTLP collector takes traces over HTTP.")
    ] = "http://127.0.0.1:4318/v1/traces",
) -> None:
    """Send a run to an OpenTelemetry collector as a trace: the run, its plays, each task on each host."""
    try:
        # An extra: no other command needs these packages, nor the time that importing them takes.
        from splitrail.run import history_otel  # noqa: PLC0415
    except ImportError as error:
        why = RecordError(f"{error.name} is not installed: pip install 'splitrail[otel]'")
        raise _could_not_run("export", why) from error
    try:
        count = history_otel.export(read(find(Project.find(Path.cwd()).runs, run)), endpoint)
    except (history_otel.ExportError, ProjectError, RecordError) as error:
        raise _could_not_run("export", error) from error
    _console().print(Text(f"{count} spans sent to {endpoint}"), soft_wrap=True)


def _show(history: History, slowest: int) -> None:
    console, run = _console(), history.run

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    _show_head(history, say)
    table = Table("play", "seconds", box=None, pad_edge=False)
    for play in history.timings.plays:
        table.add_row(play.play, f"{play.seconds:.1f}")
    console.print(table)
    if slowest and history.timings.tasks:
        say("slowest tasks:")
        for seconds, _, name in history.slowest(slowest):
            say(f"  {seconds:7.1f} s  {name}")
    statuses = ("ok", "changed", "skipped", "failed", "unreachable")
    table = Table("host", *statuses, box=None, pad_edge=False)
    for host, counts in sorted(history.statuses.items()):
        table.add_row(host, *(str(counts[status]) for status in statuses))
    console.print(table)
    for task in history.tasks:
        if task.changed:
            say(f"changed: {task.name}: {_hosts(task.changed)}")
    for failure in run.failures:
        first, _, _ = failure.message.partition("\n")
        say(f"{failure.status}: {failure.host} | {failure.task}: {first}", "red")
    for check in history.checks().values():
        if not check.ok:
            say(f"check failed: {check.host}: {check}", "red")


def _show_head(history: History, say: Any) -> None:
    run = history.run
    took = "" if history.seconds is None else f" after {history.seconds:.0f} s"
    mode = " (check mode)" if run.check else ""
    say(f"{history.name}: {run.verb}{mode}, {history.outcome}{took}", "bold")
    say(f"started {run.started:%Y-%m-%d %H:%M:%S} UTC, inventory {', '.join(run.inventory)}")
    for word, value in (
        ("limit", run.limit),
        ("tags", ", ".join(run.tags)),
        ("extra variables (names only)", ", ".join(run.extra_vars)),
        ("resumes", run.resumes),
        ("revision", run.revision),
        ("error", run.error),
    ):
        if value:
            say(f"{word}: {value}")
    for waiver in run.waivers:
        say(f"WAIVED: {waiver}", "bold red")
    for note in history.notes:
        say(f"not readable: {note}", "red")
    say(f"record: {history.folder}")


def _show_difference(difference: Difference) -> None:
    console = _console()

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    for side, history in (("first", difference.old), ("second", difference.new)):
        took = "" if history.seconds is None else f", {history.seconds:.0f} s"
        say(f"{side}: {history.name}: {history.run.verb}, {history.outcome}{took}", "bold")
    for key, (one, other) in difference.settings().items():
        say(f"{key}: {_plain(one)} -> {_plain(other)}")
    table = Table("seconds of", "first", "second", "difference", box=None, pad_edge=False)
    for name, old, new in difference.times():
        delta = "" if old is None or new is None else f"{new - old:+.1f}"
        table.add_row(name, _seconds(old), _seconds(new), delta)
    console.print(table)
    for name, before, after in difference.changes():
        say(f"changed: {name}: {_hosts(before)} -> {_hosts(after)}")
    for name, a, b in difference.flipped():
        say(f"check: {name}: {_state(a)} -> {_state(b)}", "red" if b is not None and not b.ok else "green")
        if b is not None and not b.ok:
            say(f"    {b}")


def _state(check: Check | None) -> str:
    return "not made" if check is None else "ok" if check.ok else "failed"


def _seconds(value: float | None) -> str:
    return "did not run" if value is None else f"{value:.1f}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _hosts(names: Collection[str]) -> str:
    more = len(names) - _HOSTS
    return (", ".join(sorted(names)[:_HOSTS]) + (f" and {more} more" if more > 0 else "")) or "none"


def _console() -> Console:
    return Console(highlight=False)


def _could_not_run(command: str, error: Exception) -> typer.Exit:
    Console(stderr=True).print(Text(f"splitrail runs {command}: {error}", style="red"), soft_wrap=True)
    return typer.Exit(2)
