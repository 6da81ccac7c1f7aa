#!/usr/bin/python
"""Take the work off a node of the Ray cluster: its replicas run elsewhere before they end here."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError
from ansible.module_utils.splitrail_serve import API, lacking, read, reasons

DOCUMENTATION = r"""
module: splitrail_ray_drain
short_description: Take the work off a node of the Ray cluster
description:
  - Asks Ray to drain the node (C(ray drain-node) in the head's container). Ray then places nothing there, and
    Serve starts each of the node's replicas on another before it ends it here, its requests answered.
  - Does not begin where the live engines do not fit the other nodes. Ray knows no way back from it but a
    restart of Ray on that node.
  - A node that is not in the cluster has no work, and nothing is done.
options:
  address: {description: The node's address in the cluster., type: str, required: true}
  url: {description: The head's dashboard., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  gcs: {description: "C(address:port) of Ray's control store.", type: str, required: true}
  last_good: {description: The Serve config that runs., type: path, required: true}
  engine: {description: The container engine., type: str, default: podman, choices: [podman, docker]}
  timeout_s: {description: Longest wait in seconds until it has no work., type: int, required: true}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_ray_drain:
    address: 10.0.0.13
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
    gcs: 10.0.0.11:6379
    last_good: /etc/splitrail/serve/current.yaml
    timeout_s: 3600
"""

RETURN = r"""
moved: {description: "Replicas that the node had, by deployment.", type: dict, returned: success}
seconds: {description: How long it took., type: float, returned: always}
"""

Json = dict[str, Any]
CONTAINER = "ray"


class Refused(Exception):
    """Nothing was drained; ``str()`` says why."""


class Stuck(Exception):
    """The node is draining and still has work; ``str()`` says what, and why."""


def replicas_at(answer: Json, address: str) -> dict[str, int]:
    """How many replicas of each deployment are on a node, in whatever state."""
    found: dict[str, int] = {}
    for app in answer.get("applications", {}).values():
        for name, deployment in app["deployments"].items():
            here = sum(replica.get("node_ip") == address for replica in deployment["replicas"])
            if here:
                found[name] = here
    return found


def whole(answer: Json) -> bool:
    """Whether every deployment has as many running replicas as it should."""
    return all(
        sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
        >= deployment["target_num_replicas"]
        for app in answer.get("applications", {}).values()
        for deployment in app["deployments"].values()
    )


def ask_ray(command: list[str]) -> None:
    """Run Ray's own command. Raises Refused with its last words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise Refused(f"Ray does not drain it: {' '.join(command)} ended with {done.returncode}: {said}")


def refuse(head: Head, address: str, last_good: Path) -> list[Json]:
    """The live nodes at an address; Refused for the head, and where the others cannot carry what runs."""
    nodes = head.nodes()
    here = [node for node in nodes if node["node_ip"] == address]
    if any(node.get("is_head_node") for node in here):
        raise Refused(f"{address} is the head of the cluster, and cannot be drained")
    config = read(last_good)
    if here and config is not None:
        short = lacking(config, [node for node in nodes if node not in here])
        if short:
            raise Refused(
                f"what runs does not fit the other nodes: {'; '.join(short)}; serve fewer engines first: "
                "`splitrail rebalance --to RATIO`, or `splitrail serve` of a smaller topology"
            )
    return here


def drain(head: Head, given: Json) -> dict[str, int]:
    """Drain the nodes at the address, and wait until nothing of Serve is there; what was there at first.

    Raises Refused before anything is changed, Stuck where the time is over.
    """
    here = refuse(head, given["address"], Path(given["last_good"]))
    if not here:
        return {}
    had = replicas_at(head.request("GET", API), given["address"])
    for node in here:
        ask_ray(
            [
                *(f"/usr/bin/{given['engine']}", "exec", CONTAINER, "ray", "drain-node"),
                *("--address", given["gcs"], "--node-id", str(node["node_id"])),
                # The one reason that Ray accepts of a node that works.
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "splitrail drain"),
            ]
        )
    deadline = time.monotonic() + given["timeout_s"]
    while True:
        answer = head.request("GET", API)
        left = replicas_at(answer, given["address"])
        if not left and whole(answer):
            return had
        if time.monotonic() > deadline:
            what = ", ".join(f"{count} of {name}" for name, count in left.items()) or "nothing"
            raise Stuck(
                f"{given['address']} is draining and after {given['timeout_s']} s still has {what}. It goes "
                "on draining: run this again to wait on; `systemctl restart ray` there ends what it has "
                f"and gives it back. {reasons(head, answer)}"
            )
        time.sleep(2)  # Serve looks about once a second at what has to move


def main() -> None:
    """Entry point of the module."""
    required: Json = {"required": True}
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", **required},
            "url": {"type": "str", **required},
            "token_path": {"type": "path", "no_log": False, **required},
            "gcs": {"type": "str", **required},
            "last_good": {"type": "path", **required},
            "engine": {"type": "str", "default": "podman", "choices": ["podman", "docker"]},
            "timeout_s": {"type": "int", **required},
        },
        supports_check_mode=True,
    )
    given = module.params
    started = time.monotonic()
    head = Head(given["url"], given["token_path"])
    try:
        if module.check_mode:
            here = refuse(head, given["address"], Path(given["last_good"]))
            moved = replicas_at(head.request("GET", API), given["address"]) if here else {}
            module.exit_json(changed=bool(here), moved=moved, seconds=0.0)
        was_there = any(node["node_ip"] == given["address"] for node in head.nodes())
        moved = drain(head, given)
    except (Refused, Stuck, RayError) as error:
        module.fail_json(msg=str(error), seconds=round(time.monotonic() - started, 1))
    module.exit_json(changed=was_there, moved=moved, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
