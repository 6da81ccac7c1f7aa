"""`splitrail lab`: the commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
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
# Never a number alone: QEMU would take it for a snapshot's position.
_SNAPSHOT = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_WHY = "makes the lab's network, mounts and machines"


class Power(StrEnum):
    """What a power switch can do."""

    off = "off"
    on = "on"
    cycle = "cycle"


class Link(StrEnum):
    """What can be done to a rail's cable."""

    down = "down"
    up = "up"
    swap = "swap"
    rate = "rate"
    loss = "loss"
    heal = "heal"
    show = "show"


class Snapshot(StrEnum):
    """What can be done with a snapshot."""

    save = "save"
    restore = "restore"
    list = "list"


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
def link(
    node: Annotated[str, typer.Argument(help="A host, or `all`.")] = "all",
    rail: Annotated[str, typer.Argument(help="A rail's number, or `all`.")] = "all",
    action: Annotated[Link, typer.Argument(help="`swap`, `rate` and `loss` need a VALUE.")] = Link.show,
    value: Annotated[
        float | None, typer.Argument(help="swap: the other rail; rate: Mbit/s; loss: percent.")
    ] = None,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Inject a fault of a rail's cable (both directions), heal it, or show every cable's state. VMs only."""
    with _lab(inventory, root=True) as (lab, host):
        if not (rail == "all" or rail.isdigit()):
            raise LabError(f"no rail `{rail}`; give its number, or `all`")
        number = None if rail == "all" else int(rail)
        nodes = lab.select([] if node == "all" else [node])
        found = {each.name: host.link(each, number, action, value) for each in nodes}
    table = Table("node", "rail", "cable", box=None)
    for name, rails in found.items():
        for which, state in rails.items():
            if number in (None, which):
                table.add_row(name, str(which), state)
    Console().print(table)


@app.command()
def snapshot(
    action: Snapshot,
    name: Annotated[str | None, typer.Argument(help="The snapshot's name; none for `list`.")] = None,
    hosts: Annotated[list[str] | None, typer.Argument(help="Only these hosts.")] = None,
    inventory: Inventory = _DEFAULT,
) -> None:
    """Keep running nodes as they are, make them so again in seconds, or list what is kept. VMs only."""
    with _lab(inventory, root=True) as (lab, host):
        nodes = lab.select(hosts or [])
        if action is Snapshot.list:
            table = Table("node", "snapshot", "saved", box=None)
            for node, kept in host.snapshots(nodes).items():
                for one, when in kept:
                    if name in (None, one):
                        table.add_row(node, one, f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S}")
            Console().print(table)
            return
        if not name or not _SNAPSHOT.fullmatch(name):
            raise LabError(
                f"snapshot {action} needs a name of a-z, 0-9, - and _, first a letter (got {name!r})"
            )
        (host.save if action is Snapshot.save else host.restore)(nodes, name)


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
