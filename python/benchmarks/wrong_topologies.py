"""Topologies that must be refused, and the reason that each is refused with.

usage: wrong_topologies.py [--markdown]

Prints a line a topology and, at the end, how many were refused for the reason that they must be refused for.
Exit code 1 when one was not. The topologies are those of wrong_topologies.yml; nothing is contacted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from splitrail.topology import Site, TopologyError, load, serving

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_suffix(".yml")
Json = dict[str, Any]


def merged(base: Json, change: Json) -> Json:
    """``base`` with ``change`` laid over it, mapping by mapping."""
    both = dict(base)
    for key, value in change.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def site(raw: Json) -> Site:
    """A site of the data file: its release is read, and engines get the release's environment."""
    path = ROOT / "inventories/releases" / f"{raw['release']}.yml"
    release = yaml.safe_load(path.read_text(encoding="utf-8"))
    # As the inventories do: UCX's variables are the nodes', the rest the engines'.
    env = {key: value for key, value in release.get("env", {}).items() if not key.startswith("UCX_")}
    volumes = tuple(raw.get("node_volumes", ()))
    return Site(**{**raw, "release": release, "env": env, "node_volumes": volumes})


def refusal(case: Json, sites: Json) -> str:
    """Why a case is refused; empty when it is not."""
    topology = load(case["topology"], ROOT / "inventories/topologies")
    where = case.get("site") or topology.get("platform") or "cpu"
    try:
        serving(merged(topology, case.get("change", {})), site(merged(sites[where], case.get("where", {}))))
    except TopologyError as error:
        return str(error)
    return ""


def main() -> int:
    """Refuse each and print why."""
    parser = argparse.ArgumentParser(description="Topologies that must be refused, each with its reason.")
    parser.add_argument("--markdown", action="store_true", help="a table for a document")
    markdown = parser.parse_args().markdown
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    right = 0
    lines = ["| topology | is refused with |", "|---|---|"] if markdown else []
    for case in data["wrong"]:
        said = refusal(case, data["sites"])
        right += case["says"] in said
        # Without the topology's name, and the first of several reasons.
        why = (
            said.partition(": ")[2].partition("; pools.")[0].partition("; kv_transfer.")[0]
            if said
            else "NOT REFUSED"
        )
        lines.append(
            f"| {case['what']} | {why} |" if markdown else f"{case['what']} ({case['topology']}): {why}"
        )
    total = len(data["wrong"])
    lines += ["", f"{right} of {total} refused for the reason that they must be refused for"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if right == total else 1


if __name__ == "__main__":
    sys.exit(main())
