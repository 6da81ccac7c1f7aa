"""Everything that is checked of an inventory before a host is contacted; see docs/inventory.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from splitrail.inventory import names, network, values
from splitrail.inventory.fault import Fault, InventoryError, merged, near
from splitrail.inventory.foreign import load_foreign
from splitrail.inventory.reader import Inventory, NotYaml, load
from splitrail.inventory.resolve import Fleet, Values
from splitrail.inventory.vocabulary import Vocabulary
from splitrail.inventory.vocabulary import load as load_vocabulary
from splitrail.project import Project

_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$")
# Groups that playbooks and roles' variables are written for.
_GROUPS = ("head", "workers", "nodes", "prefill", "decode")


def check(
    project: Project,
    source: str,
    extra: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> Inventory:
    """Read an inventory and raise InventoryError with everything that is wrong with it.

    ``source``: a file or folder, or a list of hosts ("h1,h2,"), of which nothing is declared. ``extra``: the
    variables of ``-e``; a name that nobody reads is refused. ``without``: hosts to leave out, beside those in
    quarantine. A project without roles has no variables of its own, so nothing is checked there.
    """
    vocabulary = load_vocabulary(project.root)
    try:
        inventory = load(Path(source))
    except (NotYaml, OSError):
        try:
            inventory = load_foreign(source)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            fault = Fault(source, 0, "", f"cannot be read: {error}", "correct it until ansible-inventory can")
            raise InventoryError([fault]) from None
    inventory.leave_out(without)
    inventory.lay_over(extra or {})
    if faults := merged([*inventory.faults, *_faults(inventory, vocabulary, extra or {})]):
        raise InventoryError(faults)
    return inventory


def applies(project: Project) -> bool:
    """Whether a project has anything to check an inventory against."""
    return (project.root / "roles").is_dir()


def _faults(inventory: Inventory, vocabulary: Vocabulary, extra: Mapping[str, Any]) -> Iterator[Fault]:
    if not inventory.hosts:
        if not inventory.faults:
            yield Fault(inventory.shown, 0, "", "declares no host", "put hosts below `hosts` of a group")
        return
    fleet = Fleet(inventory)
    yield from _groups(inventory)
    yield from names.faults(inventory, vocabulary, extra)
    yield from values.faults(inventory, vocabulary, fleet)
    yield from _cluster(inventory, fleet)
    yield from network.faults(inventory, fleet)


def _groups(inventory: Inventory) -> Iterator[Fault]:
    for host in inventory.hosts:
        if not _HOST.match(host):
            said = "is no host name; allowed: letters, digits, - and ."
            yield inventory.fault(host, said, "rename it; its address belongs into ansible_host")
    missing = [name for name in _GROUPS if name not in inventory.groups]
    for group in inventory.groups:
        asked = near(group, missing)
        if group not in _GROUPS and asked:
            cure = f"rename it, one of {', '.join(_GROUPS)}"
            yield inventory.fault(group, f"no playbook reads this group{asked}", cure)
    heads = inventory.members("head")
    if len(heads) != 1:
        said = f"has {len(heads)} hosts: {', '.join(heads)}" if heads else "there is none"
        said = f"group head: {said}; allowed: exactly one host"
        yield inventory.fault("head", said, "put one host below head.hosts")


def _cluster(inventory: Inventory, fleet: Fleet) -> Iterator[Fault]:
    lacking = [host for host in inventory.hosts if "cluster_name" not in fleet[host].variables]
    if lacking and not inventory.encrypted:
        yield Fault(
            inventory.shown,
            0,
            "cluster_name",
            "is not set; allowed: a-z, 0-9 and -",
            "write `cluster_name: NAME` into group_vars/all/main.yml",
            tuple(lacking),
        )
    first = fleet[next(iter(inventory.hosts))]
    topology = first.get("topology")
    if not isinstance(topology, dict):
        return
    yield from _pools(inventory, first, topology)


def _pools(inventory: Inventory, first: Values, topology: Mapping[str, Any]) -> Iterator[Fault]:
    """A pool whose engines want a resource of its name runs on the hosts of the group of that name."""
    wanted = first.get("llm_serve_pool_resources")
    if not isinstance(wanted, dict):
        return
    served = [
        pool for pool in topology.get("pools", {}) if pool != "aggregated" or topology.get("mode") == pool
    ]
    for pool in served:
        if pool not in (wanted.get(pool) or {}) or inventory.members(pool):
            continue
        said = f"topology {topology.get('name')} serves the pool {pool}, and the group {pool} has no host"
        yield inventory.fault(pool, said, f"put hosts below {pool}.hosts, or choose another topology_name")
