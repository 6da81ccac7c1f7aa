"""`splitrail lab`: the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitrail.lab import ssh as lab_ssh
from splitrail.lab.invoker import become_root
from splitrail.lab.lab import LabHost, as_json
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError
from splitrail.lab.spec import Lab, load

app = typer.Typer(no_args_is_help=True, help="Machines made on this host: a cluster to try everything on.")

Inventory = Annotated[Path, typer.Option("-i", "--inventory", help="Inventory with the lab_* variables.")]
_DEFAULT = Path("inventories/lab")
_WHY = "makes the lab's network, mounts and machines"


class Power(StrEnum):
    """What a power switch can do."""

    off = "off"
    on = "on"
    cycle = "cycle"


@contextmanager
def _lab(inventory: Path, *, root: bool) -> Iterator[tuple[Lab, LabHost]]:
    """The lab of `inventory`; turns what goes wrong into a message and exit code 2."""
    reporter = Reporter()
    try:
        if root:
            become_root(_WHY)
            os.umask(0o022)  # a strict umask of root's would reach into the nodes
        lab = load(inventory)
        yield lab, LabHost(lab, reporter)
    except LabError as error:
        reporter.say(f"splitrail lab: {error}")
        raise typer.Exit(2) from error
    except OSError as error:
        reporter.say(f"splitrail lab: {error.filename or inventory}: {error.strerror}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        reporter.say(
            "splitrail lab: interrupted; run the same command again to go on, or `splitrail lab down`"
        )
        raise typer.Exit(2) from error


@app.command()
def up(
    hosts: Annotated[list[str] | None, typer.Argument(help="Only these hosts.")] = None,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Make, heal and start the nodes, and wait until they are up."""
    with _lab(inventory, root=True) as (lab, host):
        host.up(lab.select(hosts or []))


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove the cache as well.")] = False,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Remove the lab: nothing of it stays but the cache."""
    with _lab(inventory, root=True) as (_, host):
        host.down(purge=purge)


@app.command()
def reset(
    hosts: Annotated[list[str], typer.Argument(help="Hosts.")], inventory: Inventory = _DEFAULT
) -> None:
    """Install nodes anew, and wait until they are up."""
    with _lab(inventory, root=True) as (lab, host):
        host.reset(lab.select(hosts))


@app.command()
def power(action: Power, node: str, inventory: Inventory = _DEFAULT) -> None:
    """Switch a node off (hard, as by pulling its plug), on, or off and on."""
    with _lab(inventory, root=True) as (lab, host):
        host.power(action, lab.select([node])[0])


@app.command()
def status(
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Show the nodes; exit code 0 when all are up, 1 when not."""
    with _lab(inventory, root=False) as (_, host):
        nodes = host.status()
    if as_data:
        typer.echo(json.dumps(as_json(nodes), indent=2))
    else:
        table = Table("node", "groups", "address", "state", "systemd", "uptime", "memory", box=None)
        for node in nodes:
            uptime = "" if node.seconds is None else str(timedelta(seconds=node.seconds))
            memory = "" if node.memory_mib is None else f"{node.memory_mib} MiB"
            table.add_row(
                node.name, " ".join(node.groups), node.address, node.state, node.systemd or "", uptime, memory
            )
        Console().print(table)
    raise typer.Exit(0 if all(node.ok for node in nodes) else 1)


@app.command()
def ssh(
    node: str,
    command: Annotated[list[str] | None, typer.Argument(help="What to run there, after `--`.")] = None,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Open a shell on a node, or run a command there."""
    with _lab(inventory, root=False) as (lab, _):
        target = lab.select([node])[0]
        if not lab.key.exists():
            raise LabError(f"{lab.inventory}: the lab has no key at {lab.key}; run `splitrail lab up` first")
        argv = [*lab_ssh.command(lab, target), *(command or [])]
        os.execvp(argv[0], argv)  # noqa: S606 (ssh takes over this terminal)
