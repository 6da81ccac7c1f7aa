"""Turn a recommended layout into a topology file that can be deployed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from splitrail.topology import TopologyError, load, parse
from splitrail.workload import Layout, WorkloadError


def topology_of(layout: Layout, base: dict[str, Any], said: str) -> str:
    """The text of a topology file: ``base`` with the layout's mode, replicas and tensor-parallel sizes.

    All else of the base stays: the model, the engines' arguments, the KV transfer. Raises TopologyError where
    the outcome could not be served.
    """
    raw = copy.deepcopy(base)
    raw["name"] = f"{str(base.get('name', 'planned')).removesuffix('-planned')}-planned"
    raw["mode"] = layout.mode
    pools = raw.setdefault("pools", {})
    for role, engines in layout.pools.items():
        pool = pools.get(role) or {}
        pools[role] = {**pool, "replicas": engines.replicas, "tensor_parallel_size": engines.tp}
    parse(raw)
    # A comment of one line, whatever the words are.
    head = f"---\n# Written by `splitrail plan`: {' '.join(said.split())}\n"
    return head + yaml.safe_dump(raw, sort_keys=False, width=110)


def ratio(layout: Layout) -> str:
    """``2p2d`` or ``4agg``: the replicas alone."""
    if layout.aggregated:
        return f"{layout.aggregated.replicas}agg"
    return "".join(f"{engines.replicas}{role[0]}" for role, engines in layout.pools.items())


def write(path: Path, layout: Layout, base_path: Path, said: str) -> None:
    """Write it. Raises WorkloadError with the file at fault."""
    try:
        base = yaml.safe_load(base_path.read_text(encoding="utf-8"))
        if not isinstance(base, dict):
            raise WorkloadError(f"{base_path}: a topology is a mapping")
        if "ratios" in base:
            # A family leaves replicas open, and knows what else goes with a ratio.
            base = load(f"{base_path.stem}-{ratio(layout)}", base_path.parent)
        path.write_text(topology_of(layout, base, said), encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{error.filename}: {error.strerror}") from error
    except (yaml.YAMLError, TopologyError) as error:
        raise WorkloadError(f"{base_path}: {error}") from error
