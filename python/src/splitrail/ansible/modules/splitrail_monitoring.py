#!/usr/bin/python
"""Prove that a node exporter answers, and that Prometheus reads every target and knows its rules."""

from __future__ import annotations

import json
import time
import urllib.request
from http.client import HTTPException
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_monitoring
short_description: Prove that monitoring works on a host
description:
  - Reads the node exporter, and on the server asks Prometheus for its targets and rules until every target of
    the expected jobs was read or the time is over. Changes nothing.
options:
  exporter: {description: Address of the node exporter's metrics., type: str, required: true}
  server: {description: Address of Prometheus; empty where none runs., type: str, default: ""}
  expect: {description: Jobs whose targets must all answer., type: list, elements: str, default: []}
  nodes: {description: "How many targets each of these jobs has, one a node.", type: int, default: 0}
  others: {description: "Lists of the targets of jobs that are not on every node, by job.", type: dict,
           default: {}}
  timeout_s: {description: Longest wait in seconds., type: float, default: 60}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_monitoring:
    exporter: http://10.0.0.11:9100/metrics
    server: http://127.0.0.1:9090
    expect: [node, ingress]
    nodes: 3
    others: {ingress: ["127.0.0.1:8405"]}
"""

RETURN = r"""
checks: {description: The checks of a verdict., type: list, elements: dict, returned: success}
"""

START = "Read `journalctl -u {unit}` on this host."


def ask(url: str) -> str:
    """The text at an address. Raises OSError or HTTPException."""
    # No proxy: both are on this host, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode(errors="replace"))


def exporter_check(url: str, deadline: float) -> dict[str, Any]:
    """Whether the node exporter answers with this node's metrics, by a time of the monotonic clock."""
    hint = START.format(unit="prometheus-node-exporter")
    while True:
        try:
            text = ask(url)
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                away: dict[str, Any] = unmade("monitoring.exporter", url, str(error), "metrics", hint=hint)
                return away
            time.sleep(0.5)  # between two tries at a unit that has just been started
        else:
            found = "node_boot_time_seconds" in text
            measured = "metrics" if found else "no node_boot_time_seconds"
            made: dict[str, Any] = check("monitoring.exporter", url, found, measured, "metrics", hint=hint)
            return made


def server_checks(url: str, targets: dict[str, int], deadline: float) -> list[dict[str, Any]]:
    """Whether Prometheus reads every target of the jobs, and every rule works."""
    while True:
        try:
            active = json.loads(ask(f"{url}/api/v1/targets?state=active"))["data"]["activeTargets"]
            groups = json.loads(ask(f"{url}/api/v1/rules"))["data"]["groups"]
        except (OSError, HTTPException, ValueError, KeyError) as error:
            hint = START.format(unit="prometheus")
            checks = [unmade("monitoring.server", url, str(error), "targets and rules", hint=hint)]
        else:
            checks = [*target_checks(active, targets), rule_check(groups)]
        if all(one["ok"] for one in checks) or time.monotonic() > deadline:
            return checks
        time.sleep(1)  # the next reading of a target comes with the interval


def target_checks(active: list[dict[str, Any]], targets: dict[str, int]) -> list[dict[str, Any]]:
    """A check a job: how many of its targets answered when they were read last."""
    checks = []
    for job, wanted in targets.items():
        mine = [target for target in active if target["labels"].get("job") == job]
        up = [target for target in mine if target["health"] == "up"]
        down = [
            f"{target['labels'].get('instance')}: {target.get('lastError') or target['health']}"
            for target in mine
            if target not in up
        ]
        checks.append(
            check(
                "monitoring.targets",
                f"job {job}",
                len(up) == len(mine) == wanted,
                f"{len(up)} of {len(mine)} answer" + (f"; {'; '.join(down[:3])}" if down else ""),
                f"{wanted} of {wanted}",
                hint="Look at the exporter's unit on the host that is named; open its port to the server.",
            )
        )
    return checks


def rule_check(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether rules are loaded and none failed when it was last worked out."""
    rules = [rule for group in groups for rule in group["rules"]]
    bad = [f"{rule['name']}: {rule.get('lastError', '')}" for rule in rules if rule["health"] == "err"]
    made: dict[str, Any] = check(
        "monitoring.rules",
        "recording rules and alerts",
        bool(rules) and not bad,
        "; ".join(bad[:3]) or f"{len(rules)} work",
        "all work",
        hint="Run the role again; it writes the rules and has promtool check them.",
    )
    return made


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "exporter": {"type": "str", "required": True},
            "server": {"type": "str", "default": ""},
            "expect": {"type": "list", "elements": "str", "default": []},
            "nodes": {"type": "int", "default": 0},
            "others": {"type": "dict", "default": {}},
            "timeout_s": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    asked = module.params
    deadline = time.monotonic() + asked["timeout_s"]
    checks = [exporter_check(asked["exporter"], deadline)]
    if asked["server"]:
        others = asked["others"]
        wanted = {job: len(others[job]) if job in others else asked["nodes"] for job in asked["expect"]}
        checks += server_checks(asked["server"], wanted, deadline)
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
