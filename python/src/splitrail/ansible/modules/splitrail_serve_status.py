#!/usr/bin/python
"""Say what the Ray cluster serves now, and on which nodes."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError

DOCUMENTATION = r"""
module: splitrail_serve_status
short_description: Say what the Ray cluster serves now
description:
  - Reads the live nodes and the Serve applications from the head's REST interface. Changes nothing.
options:
  url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_serve_status:
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
"""

RETURN = r"""
ok: {description: Whether there is an application and all of them run., type: bool, returned: success}
nodes: {description: Address and custom resources of each live node., type: list, elements: dict,
        returned: success}
applications: {description: State of each application and of its deployments., type: list, elements: dict,
               returned: success}
"""


def node_line(node: dict[str, Any]) -> dict[str, Any]:
    """Address, labels and resources of a node, without those that Ray adds to every node."""
    return {
        "address": node["node_ip"],
        "head": node["is_head_node"],
        "labels": {key: value for key, value in node["labels"].items() if not key.startswith("ray.io/")},
        "resources": {
            key: amount
            for key, amount in node["resources_total"].items()
            if not key.startswith("node:") and key not in ("memory", "object_store_memory")
        },
    }


def application_line(name: str, application: dict[str, Any]) -> dict[str, Any]:
    """State of an application, and of each deployment how many replicas run of how many."""
    return {
        "name": name,
        "status": application["status"],
        "message": application["message"].strip()[-400:],
        "deployments": [
            {
                "name": one,
                "status": deployment["status"],
                "running": sum(replica["state"] == "RUNNING" for replica in deployment["replicas"]),
                "wanted": deployment["target_num_replicas"],
                "nodes": sorted({str(replica["node_ip"]) for replica in deployment["replicas"]}),
                "actors": sorted(str(replica["actor_id"]) for replica in deployment["replicas"]),
            }
            for one, deployment in application["deployments"].items()
        ],
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
        },
        supports_check_mode=True,
    )
    head = Head(module.params["url"], module.params["token_path"])
    try:
        nodes = [node_line(node) for node in head.nodes()]
        answer = head.request("GET", "/api/serve/applications/")
    except RayError as error:
        module.fail_json(msg=f"{error}. Is Ray running? Read `journalctl -u ray` on this host.")
    applications = [application_line(name, one) for name, one in answer["applications"].items()]
    module.exit_json(
        changed=False,
        ok=bool(applications) and all(one["status"] == "RUNNING" for one in applications),
        nodes=sorted(nodes, key=lambda node: str(node["address"])),
        applications=applications,
    )


if __name__ == "__main__":
    main()
