"""What a bench must know of a cluster: its topology's layout, and that its fabric was proven."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from splitrail.project import Project
from splitrail.proof import VERBS, newest
from splitrail.topology import TopologyError, load, parse
from splitrail.workload import Engines, Layout, WorkloadError

# As the roles' gate, which looks again, and closer, at each deploy.
PROOF_MAX_AGE = timedelta(hours=24)


@dataclass(frozen=True)
class Cluster:
    """Of an inventory: what it declares for all hosts."""

    name: str
    topology: str
    transport: str


def read(inventory: str) -> Cluster:
    """Ask Ansible for the inventory. Raises WorkloadError with what is missing."""
    asked = ["ansible-inventory", "-i", inventory, "--list"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip()
        raise WorkloadError(f"{inventory} cannot be read: {told[-500:]}") from error
    return of(json.loads(said), inventory)


def of(listed: Mapping[str, Any], inventory: str) -> Cluster:
    """From what ``ansible-inventory --list`` prints. Raises WorkloadError."""
    hosts = listed.get("head", {}).get("hosts", [])
    if not hosts:
        raise WorkloadError(f"{inventory}: no host is in the group head")
    known = listed["_meta"]["hostvars"].get(hosts[0], {})
    missing = [key for key in ("cluster_name", "topology_name") if not isinstance(known.get(key), str)]
    if missing:
        raise WorkloadError(f"{inventory}: {hosts[0]} has no {' and no '.join(missing)}")
    return Cluster(known["cluster_name"], known["topology_name"], known.get("rdma_fabric_transport", "rdma"))


def layout(name: str, folder: Path, mode: str | None = None) -> Layout:
    """The layout of a topology by name. Raises WorkloadError."""
    try:
        topology = parse(load(name, folder), mode=mode)
    except TopologyError as error:
        raise WorkloadError(str(error)) from error
    pools = {
        role: Engines(replicas=pool.replicas, tp=pool.tensor_parallel_size)
        for role, pool in topology.served.items()
        if role in Layout.model_fields
    }
    if not pools:
        raise WorkloadError(f"topology {name}: engines whose roles change have no layout; measure each ratio")
    return Layout.model_validate(pools)


def refuse_unproven(project: Project, cluster: Cluster, now: datetime | None = None) -> None:
    """Raise WorkloadError where no fresh proof of the fabric lies in the run records.

    What is measured over a fabric that nobody proved says nothing about the topology.
    """
    verbs = VERBS["tcp" if cluster.transport == "tcp" else "rdma"]
    for verb in verbs:
        found = newest(project.runs / "none", verb, cluster.name)
        again = f"run `splitrail {verb if verb == 'validate' else 'up'}` for all hosts, or say --waive REASON"
        if found is None:
            raise WorkloadError(f"no {verb} proof of {cluster.name} is in {project.runs}: {again}")
        folder, proof = found
        if not proof.ok:
            why = "; ".join(proof.problems[:3])
            raise WorkloadError(
                f"the {verb} proof of {cluster.name} in {folder.name} is not ok: {why}; {again}"
            )
        age = (now or datetime.now(UTC)) - proof.at
        if age > PROOF_MAX_AGE:
            hours = age.total_seconds() / 3600
            raise WorkloadError(f"the {verb} proof of {cluster.name} is {hours:.0f} h old; {again}")
