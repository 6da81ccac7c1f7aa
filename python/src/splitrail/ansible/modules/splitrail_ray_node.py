#!/usr/bin/python
"""Wait until the Ray cluster counts this node as alive, with the labels and resources it was started with."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_ray import Head, RayError, RayRefused

DOCUMENTATION = r"""
module: splitrail_ray_node
short_description: Wait until the Ray cluster counts this node as alive
description:
  - Asks the head's REST interface, as C(ray list nodes) does, until this node is alive with the declared
    labels and resources. Where members are named, also looks for nodes that no one declared.
  - Changes nothing, in check mode or not.
options:
  url: {description: The head's dashboard., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  address: {description: This node's address in the cluster., type: str, required: true}
  labels: {description: Labels the node must carry., type: dict, required: true}
  resources: {description: Custom resources the node must offer at least., type: dict, required: true}
  members: {description: "Addresses that may be in the cluster; empty to leave that out.", type: list,
            elements: str, required: true}
  unit: {description: The unit whose journal explains a node that does not come., type: str, required: true}
  timeout_s: {description: Longest wait in seconds., type: int, required: true}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_ray_node:
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
    address: 10.0.0.12
    labels: {pool: prefill}
    resources: {prefill: 8}
    members: []
    unit: ray.service
    timeout_s: 120
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Node = dict[str, Any]


def last_words(unit: str, lines: int = 4) -> str:
    """The last lines of a unit's journal, the place where a service says why it does not come up."""
    command = ["journalctl", "--unit", unit, "--lines", "60", "--output", "cat", "--no-pager"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"(no journal: {error})"
    # The engine's own events (create, init, start, ...) are no reason and would fill the page.
    said = [line[:300] for line in done.stdout.splitlines() if line.strip() and " container " not in line]
    return " | ".join(said[-lines:]) or "(nothing in the journal)"


def at(nodes: list[Node], address: str) -> list[Node]:
    """The live nodes at an address: two while the cluster has not yet missed the one before a restart."""
    return [node for node in nodes if node["node_ip"] == address]


def member_checks(
    nodes: list[Node], address: str, members: list[str], unit: str, problem: str
) -> list[dict[str, Any]]:
    """Whether this node is alive and, if members are named, whether anyone else is who should not be.

    problem: why the cluster could not be asked, or nothing.
    """
    alive = bool(at(nodes, address))
    # The unit's journal says why it does not come, so it is read only then.
    hint = "" if alive else f"Read `journalctl --unit {unit}`; its last lines: {last_words(unit)}"
    found = "alive" if alive else problem or "not in the cluster"
    checks = [check("cluster.node_alive", address, alive, found, "alive", hint=hint)]
    if members and problem:
        checks.append(unmade("cluster.no_strangers", "the cluster", problem, "none", hint=hint))
    elif members:
        strangers = sorted({str(node["node_ip"]) for node in nodes} - set(members))
        checks.append(
            check(
                "cluster.no_strangers",
                "the cluster",
                not strangers,
                ", ".join(strangers) or "none",
                "none",
                hint="Stop Ray on these addresses, or declare them in the inventory.",
            )
        )
    return checks


def declared_checks(node: Node, labels: Node, resources: Node, unit: str) -> list[dict[str, Any]]:
    """Whether an alive node carries what it was declared to carry."""
    address = node["node_ip"]
    hint = f"Restart {unit} on this host; the unit and the running container disagree."
    checks = []
    for name, value in labels.items():
        measured = node.get("labels", {}).get(name, "none")
        checks.append(
            check(
                "cluster.label",
                f"{address} label {name}",
                measured == str(value),
                measured,
                str(value),
                hint=hint,
            )
        )
    for name, amount in resources.items():
        offered = node.get("resources_total", {}).get(name, 0)
        checks.append(
            check(
                "cluster.resource",
                f"{address} resource {name}",
                offered >= float(amount),
                offered,
                float(amount),
                hint=hint,
            )
        )
    return checks


def look(head: Head, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Wait until this node is in the cluster as declared, or time is over, and say what was found."""
    deadline = time.monotonic() + wanted["timeout_s"]
    while True:
        problem, refused = "", False
        nodes: list[Node] = []
        try:
            nodes = head.nodes()
        except RayError as error:
            problem, refused = str(error), isinstance(error, RayRefused)
        declared = [
            one
            for node in at(nodes, wanted["address"])
            for one in declared_checks(node, wanted["labels"], wanted["resources"], wanted["unit"])
        ]
        as_declared = bool(at(nodes, wanted["address"])) and all(one["ok"] for one in declared)
        if as_declared or refused or time.monotonic() > deadline:
            break
        time.sleep(1)  # between two questions to a cluster that is still forming
    members = wanted["members"]
    return member_checks(nodes, wanted["address"], members, wanted["unit"], problem) + declared


def main() -> None:
    """Entry point of the module."""
    required: dict[str, Any] = {"required": True}
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", **required},
            "token_path": {"type": "path", "no_log": False, **required},
            "address": {"type": "str", **required},
            "labels": {"type": "dict", **required},
            "resources": {"type": "dict", **required},
            "members": {"type": "list", "elements": "str", **required},
            "unit": {"type": "str", **required},
            "timeout_s": {"type": "int", **required},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    started = time.monotonic()
    # One answer may not take longer than all of them together.
    head = Head(wanted["url"], wanted["token_path"], timeout_s=min(30, wanted["timeout_s"]))
    checks = look(head, wanted)
    module.exit_json(changed=False, checks=checks, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
