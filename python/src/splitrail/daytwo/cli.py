"""`splitrail quarantine`: the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from splitrail.daytwo import quarantine
from splitrail.daytwo.fits import why_not
from splitrail.inventory.check import check
from splitrail.inventory.fault import InventoryError
from splitrail.project import Project, ProjectError

OK, FAILED, COULD_NOT_RUN = 0, 1, 2

quarantine_app = typer.Typer(
    no_args_is_help=True, help="Hosts out of service, which every verb leaves out: `list`, `add`, `release`."
)

Inventory = Annotated[
    str | None, typer.Option("-i", "--inventory", help="Inventory folder or file; by default ansible.cfg's.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Hosts = Annotated[list[str], typer.Argument(help="Hosts of the inventory.", metavar="HOST...")]


@quarantine_app.command("list")
def list_hosts(inventory: Inventory = None, as_json: Json = False) -> None:
    """Show which hosts are out of service, since when, and why; the evidence of those that failed."""
    try:
        hosts = quarantine.load(Project.find(Path.cwd()).inventory(inventory))
    except (ProjectError, quarantine.QuarantineError) as error:
        raise could_not_run("quarantine list", error, as_json=as_json) from error
    if as_json:
        shown = {host: entry.model_dump(mode="json") for host, entry in sorted(hosts.items())}
        print_json({"ok": True, "exit_code": OK, "hosts": shown})
        return
    console = Console(highlight=False)
    for host, entry in sorted(hosts.items()):
        console.print(Text(quarantine.line(host, entry), "bold"), soft_wrap=True)
        if entry.evidence is not None:
            told = entry.evidence
            where = f"{told.role} : {told.task}" if told.role else told.task
            console.print(Text(f"  {where}: {told.message}"), soft_wrap=True)
            console.print(Text(f"  splitrail runs show {told.record}"), soft_wrap=True)
    if not hosts:
        console.print("no host is in quarantine")


@quarantine_app.command()
def add(
    hosts: Hosts,
    reason: Annotated[str, typer.Option("--reason", help="Why, in words; every later run repeats it.")],
    inventory: Inventory = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the cluster does not work without them.")
    ] = False,
) -> None:
    """Leave hosts out of every verb from now on. Changes nothing on them: `splitrail drain` takes their work.

    Exit code 1, and nothing done, where the cluster does not work without them.
    """
    try:
        project = Project.find(Path.cwd())
        source = project.inventory(inventory)
        known = check(project, source).hosts
        if strangers := [host for host in hosts if host not in known and host not in quarantine.load(source)]:
            raise quarantine.QuarantineError(
                f"{', '.join(strangers)}: no host of {source}; it has {', '.join(sorted(known))}"
            )
        if not force and (reasons := why_not(project, source, set(hosts))):
            raise refused("quarantine add", "; ".join(reasons))
        entries = {host: quarantine.Entry.now(reason, "person") for host in hosts}
        file = quarantine.add(source, entries)
    except (InventoryError, ProjectError, ValueError, quarantine.QuarantineError) as error:
        raise could_not_run("quarantine add", error) from error
    for host, entry in entries.items():
        say(quarantine.line(host, entry))
    say(f"every verb leaves {'it' if len(hosts) == 1 else 'them'} out from now on ({file})")


@quarantine_app.command()
def release(hosts: Hosts, inventory: Inventory = None) -> None:
    """Have hosts in every verb again. They are proven and join by the next `splitrail up`."""
    try:
        source = Project.find(Path.cwd()).inventory(inventory)
        for host, entry in quarantine.release(source, hosts).items():
            say(f"{host} is released; it was in quarantine: {entry.reason}")
    except (ProjectError, quarantine.QuarantineError) as error:
        raise could_not_run("quarantine release", error) from error
    say(f"to prove and use: splitrail up -i {source}")


def say(text: str) -> None:
    """A line on standard output, as it is."""
    Console(highlight=False).print(Text(text), soft_wrap=True)


def refused(command: str, why: str) -> typer.Exit:
    """Say why nothing was done; the exit of a failed check."""
    Console(stderr=True).print(Text(f"splitrail {command}: refused: {why}", style="red"), soft_wrap=True)
    return typer.Exit(FAILED)


def could_not_run(command: str, error: Exception, *, as_json: bool = False) -> typer.Exit:
    """Say why nothing could be done; exit code 2."""
    Console(stderr=True).print(Text(f"splitrail {command}: {error}", style="red"), soft_wrap=True)
    if as_json:
        print_json({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(error)})
    return typer.Exit(COULD_NOT_RUN)


def print_json(document: dict[str, object]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
