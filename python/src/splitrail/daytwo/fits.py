"""Whether a cluster can do without some of its hosts: what its topology needs against what is left.

Asks the inventory alone and contacts no host.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from splitrail.inventory.check import check
from splitrail.inventory.fault import InventoryError
from splitrail.inventory.reader import NotYaml, load
from splitrail.inventory.resolve import Fleet, Unknown, Wrong
from splitrail.project import Project
from splitrail.topology import Site, TopologyError, serving

_HEAD = "head"


def why_not(
    project: Project, inventory: str, without: Collection[str], extra: Mapping[str, Any] | None = None
) -> list[str]:
    """Every reason why the cluster does not work without these hosts; none when it does.

    ``extra``: the variables of ``-e``. What cannot be told from the inventory is a reason too: a cluster is
    not made smaller on a guess. An inventory that declares no topology serves nothing, so it always fits.
    """
    extra = extra or {}
    try:
        if head := _head(inventory, without):
            return [f"{head} is the head, which runs Ray's control and the entrance"]
        rest = check(project, inventory, extra, without)
    except InventoryError as error:
        return [str(fault) for fault in error.faults]
    return _topology(Fleet(rest))


def _head(inventory: str, among: Collection[str]) -> str | None:
    """The head, if it is among these hosts. Where the inventory is not read here, the check misses it."""
    try:
        return next((host for host in load(Path(inventory)).members(_HEAD) if host in among), None)
    except (NotYaml, OSError):
        return None


def _topology(fleet: Fleet) -> list[str]:
    first = fleet[next(iter(fleet.inventory.hosts))]
    if "llm_serve_topology" not in first.variables:
        return []
    try:
        offers = _offers(fleet)
        site = Site(
            nodes=offers,
            worker_bundle=first["llm_serve_worker_bundle"]
            if "llm_serve_worker_bundle" in first.variables
            else {"GPU": 1},
            pool_resources=first.get("llm_serve_pool_resources", {}),
        )
        serving(first["llm_serve_topology"], site, mode=first.get("llm_serve_mode"))
    except (Unknown, Wrong) as error:
        return [f"whether the topology fits cannot be told from the inventory: {error}"]
    except TopologyError as error:
        return [str(error)]
    return []


def _offers(fleet: Fleet) -> dict[str, dict[str, float]]:
    """What each node offers to Ray: ``llm_serve_nodes``, or what Ray is started with where that is empty.

    Raises Unknown where the inventory tells neither.
    """
    first = fleet[next(iter(fleet.inventory.hosts))]
    if "llm_serve_nodes" in first.variables and (said := first["llm_serve_nodes"]):
        return {str(node): dict(offer) for node, offer in said.items()}
    offers: dict[str, dict[str, float]] = {}
    for host in fleet.inventory.hosts:
        values = fleet[host]
        if "ray_cluster_resources" not in values.variables:
            raise Unknown("it declares neither llm_serve_nodes nor ray_cluster_resources")
        offers[host] = {**values["ray_cluster_resources"], "CPU": values.get("ray_cluster_num_cpus", 0)}
    return offers
