"""`splitrail drain`, `undrain`, `add`, `remove`: a node out of service and back, without a failed request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from splitrail.daytwo import quarantine
from splitrail.daytwo.cli import Inventory, Json, could_not_run, print_json, refused
from splitrail.daytwo.fits import why_not
from splitrail.daytwo.reset import look, preview, require_name, wipe
from splitrail.inventory.before import given
from splitrail.inventory.check import check as check_inventory
from splitrail.inventory.fault import InventoryError
from splitrail.project import Project, ProjectError
from splitrail.run.execute import OK, Report, execute, summarize
from splitrail.run.playbook import CannotRun, Options, Step

DRAIN = "playbooks/drain.yml"
# What a node goes through before it is used again; the proofs only where they are asked for, because the mesh
# of all nodes shares the rails with the traffic.
OF_THE_NODE = ("preflight", "provision")
PROOFS = {"fabric", "validate"}
OF_ALL = ("fabric", "image", "validate", "cluster")

Node = Annotated[str, typer.Argument(help="A host of the inventory.", metavar="NODE")]
Check = Annotated[bool, typer.Option("--check", help="Predict, change nothing.")]
ExtraVars = Annotated[
    list[str] | None, typer.Option("-e", "--extra-vars", help="key=value, a YAML mapping, or @FILE.")
]
Verbose = Annotated[int, typer.Option("-v", count=True, help="Show Ansible's own output.")]


@dataclass(frozen=True)
class Asked:
    """What every command here is told."""

    project: Project
    node: str
    options: Options
    as_json: bool

    @property
    def console(self) -> Console:
        return Console(stderr=self.as_json, highlight=False)

    @property
    def inventory(self) -> str:
        return self.options.inventory


def drain(
    *,
    node: Node,
    inventory: Inventory = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; every later run repeats it.")] = "drained",
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Have a node's engines run elsewhere, stop Ray there, and leave it out of every verb.

    Refused (exit code 1) where the topology does not fit the other nodes: serve a smaller one first.
    """
    with _told("drain", as_json):
        asked = _asked(node, inventory, as_json, _given(extra_vars, check, verbose))
        report = take_out(asked, reason)
    _end(asked, report, f"{node} has no work, and every verb leaves it out: hands off until undrain")


def undrain(
    *,
    node: Node,
    inventory: Inventory = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Prove fabric and transport of all nodes anew (after a reboot).")
    ] = False,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Check, provision and join a node again. Where a gate refuses it, it stays in quarantine."""
    with _told("undrain", as_json):
        asked = _asked(node, inventory, as_json, _given(extra_vars, check, verbose))
        if node not in quarantine.load(asked.inventory):
            raise quarantine.QuarantineError(f"{node} is not out of service: nothing to undrain")
        report = bring_in(asked, "undrain", prove=prove)
    _end(asked, report, f"{node} is in the cluster; `splitrail serve` and `splitrail rebalance` may use it")


def add(
    *,
    node: Node,
    inventory: Inventory = None,
    extra_vars: ExtraVars = None,
    check: Check = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Bring a node that the inventory now declares into the running cluster: checked, provisioned, proven."""
    with _told("add", as_json):
        asked = _asked(node, inventory, as_json, _given(extra_vars, check, verbose))
        if node not in check_inventory(asked.project, asked.inventory).hosts:
            raise quarantine.QuarantineError(
                f"{asked.inventory} does not declare {node}: write it below hosts of its groups first, with "
                "its ansible_host (`splitrail discover` shows what it is)"
            )
        report = bring_in(asked, "add", prove=True)
    _end(asked, report, f"{node} is in the cluster; `splitrail serve` and `splitrail rebalance` may use it")


def remove(
    *,
    node: Node,
    inventory: Inventory = None,
    models: Annotated[bool, typer.Option("--models", help="Delete the models' weights on it too.")] = False,
    confirm: Annotated[
        str | None, typer.Option("--confirm", help="The cluster's name, in place of typing it.")
    ] = None,
    extra_vars: ExtraVars = None,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Drain a node for good, and delete what serving left on it, after showing it and asking for the name."""
    with _told("remove", as_json):
        asked = _asked(node, inventory, as_json, _given(extra_vars, False, verbose))
        report = take_out(asked, "removed")
        if report.code == OK:
            with quarantine.let_in(node):
                options = replace(asked.options, limit=node)
                cluster, items = look(asked.project, options, models=models)
                for line in preview(items, last=False):
                    asked.console.print(Text(line), soft_wrap=True)
                require_name("remove", cluster, confirm, asked.console)
                report = wipe(asked.project, options, items, cluster, models=models, console=asked.console)
    _end(asked, report, f"take {node} out of the inventory, then: splitrail quarantine release {node}")


def take_out(asked: Asked, reason: str) -> Report:
    """Drain a node, and put it into quarantine once it has no work. Raises typer.Exit where it may not go."""
    known = quarantine.load(asked.inventory)
    extra = given(asked.options.extra_vars)
    hosts = check_inventory(asked.project, asked.inventory, extra).hosts
    if asked.node not in {*hosts, *known}:
        raise quarantine.QuarantineError(f"{asked.node} is no host of {asked.inventory}: {', '.join(hosts)}")
    reasons = why_not(asked.project, asked.inventory, [asked.node], extra)
    if asked.node not in known and reasons:
        raise refused("drain", "; ".join(reasons))
    options = _with(asked.options, {"drain_node": asked.node})
    # One that is there already may have failed while it worked.
    with quarantine.let_in(asked.node):
        report = execute(asked.project, "drain", DRAIN, options, resume=False, console=asked.console)
    if report.code == OK and not options.check and asked.node not in known:
        quarantine.add(asked.inventory, {asked.node: quarantine.Entry.now(reason, "drain")})
    return replace(report, resume=None)


def bring_in(asked: Asked, verb: str, *, prove: bool) -> Report:
    """Take a node through all that stands before its use, then release it; else it stays in quarantine."""
    before = quarantine.load(asked.inventory).get(asked.node)
    steps = _steps(asked.project, asked.node, prove=prove)
    cluster = "playbooks/cluster.yml"
    with quarantine.let_in(asked.node):
        report = execute(
            asked.project, verb, cluster, asked.options, resume=False, console=asked.console, steps=steps
        )
    if before is not None and not asked.options.check:
        if report.code == OK:
            quarantine.release(asked.inventory, [asked.node])
        else:
            quarantine.add(asked.inventory, {asked.node: _failed(before, report)})
    return replace(report, resume=None)


def _steps(project: Project, node: str, *, prove: bool) -> list[Step]:
    def playbooks(verbs: Sequence[str]) -> tuple[Path, ...]:
        return tuple(project.playbook(f"playbooks/{verb}.yml") for verb in verbs)

    rest = [verb for verb in OF_ALL if prove or verb not in PROOFS]
    return [Step(playbooks(OF_THE_NODE), hosts=(node,)), Step(playbooks(rest))]


def _failed(before: quarantine.Entry, report: Report) -> quarantine.Entry:
    """Why a node stays: the first failure of the run that was to bring it in."""
    run = report.run
    verb = run.failed_verb or "its start"
    evidence = None
    if run.open_failures:
        told = run.open_failures[0]
        evidence = quarantine.Evidence(
            record=report.folder.name, verb=verb, role=told.role, task=told.task, message=told.message
        )
    return quarantine.Entry.now(f"{before.reason}; {run.verb} failed in {verb}", "run", evidence)


def _given(extra_vars: list[str] | None, check: bool, verbose: int) -> dict[str, Any]:
    return {"extra_vars": tuple(extra_vars or ()), "check": check, "verbosity": verbose}


def _asked(node: str, inventory: str | None, as_json: bool, more: dict[str, Any]) -> Asked:
    project = Project.find(Path.cwd())
    return Asked(project, node, Options(project.inventory(inventory), **more), as_json)


def _with(options: Options, own: dict[str, Any]) -> Options:
    return replace(options, extra_vars=(*options.extra_vars, json.dumps(own)))


@contextmanager
def _told(command: str, as_json: bool) -> Iterator[None]:
    """Whatever keeps a command from running ends it with exit code 2."""
    try:
        yield
    except (CannotRun, InventoryError, ProjectError, quarantine.QuarantineError) as error:
        raise could_not_run(command, error, as_json=as_json) from error


def _end(asked: Asked, report: Report, done: str) -> None:
    summarize(report, asked.console)
    if report.code == OK and not asked.options.check:
        asked.console.print(Text(done), soft_wrap=True)
    if asked.as_json:
        print_json(report.document())
    raise typer.Exit(report.code)
