"""Measure what the lab loses with its head: requests, seconds, and actors.

usage: python python/benchmarks/head_loss.py [container] [node]

For each: lists the live actors of Ray, kills the head's container (SIGKILL) or crashes its node (a reboot
without a shutdown) while requests are asked one after another, waits until twenty in a row are answered
right, and lists the actors again. Prints a JSON line: what lab_recovery.py measures, and of the actors that
ran on other nodes how many there were and how many are the same ones (``kept``: same id and process).

Run it with ``ray_cluster_gcs_store`` as it is by default, and then with `splitrail up` given
``-e ray_cluster_gcs_store=redis``: nothing here knows which it is.
"""

from __future__ import annotations

import json
import subprocess
import sys

from lab_recovery import CASES, INVENTORY, measure

CASES["container"] = ("lab-head", "podman kill --signal KILL ray")
CASES["node"] = CASES["head-node"]
LIST = "podman exec ray ray list actors --filter state=ALIVE --detail --format json --limit 1000"


def on_head(command: str) -> str:
    """What a command as root says on the head. Raises CalledProcessError when it fails."""
    words = [sys.executable, "-m", "splitrail", "lab", "ssh", "-i", str(INVENTORY), "lab-head", "--"]
    return subprocess.run([*words, f"sudo {command}"], check=True, capture_output=True, text=True).stdout


def actors() -> dict[str, tuple[str, int]]:
    """Live actors on nodes other than the head: id to class and process."""
    listed = json.loads(on_head(LIST))
    nodes = json.loads(on_head("podman exec ray ray list nodes --detail --format json"))
    heads = {node["node_id"] for node in nodes if node["is_head_node"]}
    return {one["actor_id"]: (one["class_name"], one["pid"]) for one in listed if one["node_id"] not in heads}


def main() -> int:
    """Lose the head in each of the named ways."""
    for case in sys.argv[1:] or ["container", "node"]:
        before = actors()
        result = measure(case)
        after = actors()
        kept = {one for one in before if after.get(one) == before[one]}
        result |= {"actors": len(before), "kept": len(kept)}
        result["lost"] = sorted({before[one][0] for one in before.keys() - kept})
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
