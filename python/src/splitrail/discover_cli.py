"""`splitrail discover`: an inventory from what is there, and what is there against an inventory."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.discover import DiscoverError, Node, compare, look
from splitrail.discover_write import Roles, write
from splitrail.inventory.before import require
from splitrail.inventory.check import check
from splitrail.project import Project, ProjectError
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK
from splitrail.run.playbook import CannotRun, Options
from splitrail.verdict import Verdict
from splitrail.verdict import show as show_verdict

Hosts = Annotated[list[str] | None, typer.Argument(help="Addresses to look at, or NAME=ADDRESS.")]


def discover(
    hosts: Hosts = None,
    *,
    inventory: Annotated[
        str | None, typer.Option("-i", "--inventory", help="Compare the nodes of this inventory with it.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="User on the nodes; password-less sudo.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key.")] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of SSH.")] = 22,
    out: Annotated[Path | None, typer.Option("--out", help="Write this folder of inventories/.")] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", help="Shipped inventory to start from; else by the GPUs."),
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="The head, by its name.")] = None,
    prefill: Annotated[str | None, typer.Option("--prefill", help="Hosts that prefill, by commas.")] = None,
    decode: Annotated[str | None, typer.Option("--decode", help="Hosts that decode, by commas.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")
    ] = False,
) -> None:
    """Write an inventory from what nodes are, or (with -i) show where they differ from one.

    Exit codes: 0 ok, 1 something differs, 2 could not look or too little is known.
    """
    console = Console(stderr=as_json, highlight=False)
    try:
        project = Project.find(Path.cwd())
        if (inventory is None) == (not hosts):
            raise DiscoverError("name hosts to look at, or an inventory with -i, and not both")
        if inventory is not None:
            code, document = _compare(project, project.inventory(inventory), console)
        else:
            reached = _reached(hosts or [], user, key, port)
            options = (like, head, prefill, decode)
            code, document = _write(project, reached, out, options, console)
    except (CannotRun, DiscoverError, ProjectError) as error:
        Console(stderr=True).print(Text(f"splitrail discover: {error}", style="red"), soft_wrap=True)
        if as_json:
            _print({"ok": False, "exit_code": COULD_NOT_RUN, "error": str(error)})
        raise typer.Exit(COULD_NOT_RUN) from error
    if as_json:
        _print({"ok": code == OK, "exit_code": code, **document})
    raise typer.Exit(code)


def _compare(project: Project, inventory: str, console: Console) -> tuple[int, dict[str, Any]]:
    require(project, inventory)
    nodes = look(project, Options(inventory=inventory))
    verdict = compare(check(project, inventory), nodes)
    show_nodes(nodes, console)
    show_verdict(verdict, console)
    return OK if verdict.ok else FAILED, {"nodes": _plain(nodes), "verdict": _verdict(verdict)}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return verdict.model_dump(mode="json")


def _reached(hosts: list[str], user: str | None, key: Path | None, port: int) -> dict[str, dict[str, Any]]:
    """How each host is reached, by the name given or by its address."""
    found: dict[str, dict[str, Any]] = {}
    for given in hosts:
        name, _, address = given.rpartition("=")
        variables: dict[str, Any] = {"ansible_host": address}
        if user:
            variables["ansible_user"] = user
        if key:
            if not key.expanduser().is_file():
                raise DiscoverError(f"--key {key}: no such file")
            variables["ansible_ssh_private_key_file"] = str(key.expanduser().resolve())
        if port != 22:  # noqa: PLR2004  # SSH's own
            variables["ansible_port"] = port
        if (name or address) in found:
            raise DiscoverError(f"{given}: named twice")
        found[name or address] = variables
    return found


def _write(
    project: Project,
    reached: dict[str, dict[str, Any]],
    out: Path | None,
    options: tuple[str | None, str | None, str | None, str | None],
    console: Console,
) -> tuple[int, dict[str, Any]]:
    like, head, prefill, decode = options
    with tempfile.TemporaryDirectory(prefix="splitrail-discover-") as name:
        hosts = Path(name) / "hosts.yml"
        hosts.write_text(yaml.safe_dump({"all": {"hosts": reached}}), encoding="utf-8")
        seen = look(project, Options(inventory=name))
    nodes, connection = _named(seen, reached)
    show_nodes(nodes, console)
    document: dict[str, Any] = {"nodes": _plain(nodes)}
    if out is None:
        console.print(Text("nothing written: name a folder with --out inventories/NAME"))
        return OK, document
    roles = Roles.of(list(nodes), head, prefill, decode)
    left = write(project, out, nodes, connection, roles=roles, like=like)
    console.print(Text(f"written: {out}; it passes `splitrail inventory check`"), soft_wrap=True)
    for line in left:
        console.print(Text(f"to decide: {line}", style="yellow"), soft_wrap=True)
    return OK, {**document, "written": str(out), "to_decide": left}


def _named(
    seen: dict[str, Node], reached: dict[str, dict[str, Any]]
) -> tuple[dict[str, Node], dict[str, dict[str, Any]]]:
    """Hosts by the name they were given, or else by their own. Raises DiscoverError for one name twice."""
    names = {
        host: host if host != reached[host]["ansible_host"] else node.hostname for host, node in seen.items()
    }
    if len(set(names.values())) < len(names):
        told = ", ".join(f"{host} is {name}" for host, name in names.items())
        raise DiscoverError(f"several hosts have one name ({told}): name them, NAME=ADDRESS")
    return {names[h]: seen[h] for h in seen}, {names[h]: reached[h] for h in seen}


def show_nodes(nodes: dict[str, Node], console: Console) -> None:
    """A line a node."""
    table = Table(box=None, pad_edge=False)
    for title in ("host", "system", "CPUs", "memory GiB", "GPUs", "RDMA NICs", "switches"):
        table.add_column(title, overflow="fold")
    for host, node in nodes.items():
        kinds = sorted({f"{gpu.vendor[2:]}:{gpu.device[2:]}" for gpu in node.gpus})
        gpus = f"{len(node.gpus)} ({', '.join(kinds)})" if node.gpus else "0"
        switches = sorted(
            {neighbour["switch"] for neighbour in node.lldp.values() if neighbour.get("switch")}
        )
        system = f"{node.os} {node.os_version}, {node.kernel}"
        nics = ", ".join(f"{nic.pci} {nic.rdma}" for nic in node.nics) or "none"
        row = [
            host,
            system,
            str(node.cpus),
            f"{node.memory_gib:g}",
            gpus,
            nics,
            ", ".join(switches) or "not told",
        ]
        table.add_row(*row)
    console.print(table)


def _plain(nodes: dict[str, Node]) -> dict[str, Any]:
    return {host: node.model_dump(mode="json") for host, node in nodes.items()}


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
