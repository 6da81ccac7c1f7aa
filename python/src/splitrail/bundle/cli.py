"""`splitrail bundle`: the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from splitrail.bundle import server
from splitrail.bundle.create import Request, Watcher, create
from splitrail.bundle.manifest import BundleError, Manifest, load
from splitrail.bundle.needs import ask
from splitrail.bundle.signing import Key
from splitrail.bundle.verify import verify
from splitrail.project import Project, ProjectError
from splitrail.release import ReleaseError
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK
from splitrail.run.playbook import CannotRun, Options
from splitrail.verdict import show

app = typer.Typer(no_args_is_help=True, help="The air gap: all that a release names in one folder.")

Folder = Annotated[Path, typer.Argument(help="The bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
_INTERRUPTED = 130


@app.command("create")
def create_(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to make, or to complete.")],
    inventory: Annotated[
        str | None,
        typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="Code name of the nodes' system; by default this machine's.")
    ] = None,
    apt_sources: Annotated[
        Path | None,
        typer.Option("--apt-sources", help="APT sources (deb822) to take; by default this machine's."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Folder of a model that the nodes do not make themselves."),
    ] = None,
    extra_vars: Annotated[
        list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Collect every artifact that an inventory's release names; run again, it goes on where it stopped."""
    console = Console(stderr=True, highlight=False)
    try:
        project = Project.find(Path.cwd())
        options = Options(inventory=project.inventory(inventory), extra_vars=tuple(extra_vars or ()))
        needs = ask(project, options)
        sources = apt_sources.read_text(encoding="utf-8") if apt_sources else None
        request = Request(suite or _own_suite(), sources, tuple(path.resolve() for path in model or ()))
        with _Shown(console) as watch:
            made = create(needs, request, out.absolute(), key_of(project), watch)
    except BundleError as error:
        raise _failed("create", error.faults, error.code, as_json=as_json) from error
    except (CannotRun, ProjectError, ReleaseError, OSError) as error:
        raise _failed("create", [str(error)], COULD_NOT_RUN, as_json=as_json) from error
    except KeyboardInterrupt as error:
        raise _failed(
            "create", ["interrupted: run the same again; it goes on"], _INTERRUPTED, as_json=as_json
        ) from error
    _sum(made, out, console, as_json=as_json)


@app.command("verify")
def verify_(
    *,
    folder: Folder,
    key: Annotated[
        Path | None, typer.Option("--key", help="The key that is trusted; by default this project's own.")
    ] = None,
    release: Annotated[
        str, typer.Option("--release", help="Demand that it is a bundle of this release.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check the signature and every file by its digest; name what is missing, damaged or surplus."""
    console = Console(stderr=as_json, highlight=False)
    try:
        public = key or key_of(Project.find(Path.cwd())).public
        with _Shown(Console(stderr=True, highlight=False)) as watch:
            watch.begin(sum(artifact.bytes for artifact in load(folder).artifacts), 0)
            verdict = verify(folder.absolute(), public, watch.arrived, release)
    except BundleError as error:
        raise _failed("verify", error.faults, error.code, as_json=as_json) from error
    except (ProjectError, OSError) as error:
        raise _failed("verify", [str(error)], COULD_NOT_RUN, as_json=as_json) from error
    show(verdict, console)
    code = OK if verdict.ok else FAILED
    if as_json:
        _print(
            {"ok": verdict.ok, "exit_code": code, "verdict": verdict.model_dump(mode="json"), "error": None}
        )
    raise typer.Exit(code)


@app.command("serve")
def serve_(
    folder: Folder,
    address: Annotated[
        str, typer.Option("--address", help="Address to listen on: a management address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8090,
) -> None:
    """Serve a bundle to nodes: APT, wheels, git, images, models. It is only read."""
    try:
        server.serve(folder.absolute(), address, port)
    except server.CannotServe as error:
        raise _failed("serve", [str(error)], COULD_NOT_RUN, as_json=False) from error


def key_of(project: Project) -> Key:
    """The key that this project's bundles are signed with; git ignores the folder."""
    return Key(project.root / ".secrets/bundle")


class _Shown(Watcher):
    """Steps as lines, bytes as a bar where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("files", total=None, visible=False)

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, what: str) -> None:
        self._console.print(Text(f"bundle: {what}"), soft_wrap=True)

    def begin(self, total: int, have: int) -> None:
        self._console.print(
            Text(f"bundle: {total / 2**20:.0f} MiB, of which {have / 2**20:.0f} are here"), soft_wrap=True
        )
        self._progress.update(self._task, total=total, completed=have, visible=True)

    def arrived(self, count: int) -> None:
        self._progress.advance(self._task, count)


def _own_suite() -> str:
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise BundleError("/etc/os-release: no VERSION_CODENAME: name the nodes' system with --suite")


def _sum(made: Manifest, out: Path, console: Console, *, as_json: bool) -> None:
    kinds = {artifact.kind: 0 for artifact in made.artifacts}
    unique = {artifact.sha256: artifact.bytes for artifact in made.artifacts}
    for artifact in made.artifacts:
        kinds[artifact.kind] += 1
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    console.print(
        Text(f"{out}: release {made.release}, {counted}; {sum(unique.values()) / 2**20:.0f} MiB"),
        soft_wrap=True,
    )
    if as_json:
        _print({"ok": True, "exit_code": OK, "files": kinds, "bytes": sum(unique.values()), "error": None})


def _failed(command: str, faults: list[str], code: int, *, as_json: bool) -> typer.Exit:
    console = Console(stderr=True, highlight=False)
    for fault in faults:
        console.print(Text(f"splitrail bundle {command}: {fault}", style="red"), soft_wrap=True)
    if as_json:
        _print({"ok": False, "exit_code": code, "error": "\n".join(faults)})
    return typer.Exit(code)


def _print(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
