#!/usr/bin/python
"""Read a node's exporters and NIC counters, and on the head which engine runs where."""

from __future__ import annotations

import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError

DOCUMENTATION = r"""
module: splitrail_scrape
short_description: Read a node's exporters once
description:
  - Reads the text of the node's exporters, keeps the metrics whose names begin as asked, and adds the bytes
    that came in on the node's NICs. With C(dashboard_url) it also asks Ray's head which replica runs where.
    Changes nothing; an exporter that does not answer is named in C(errors) and is no failure.
options:
  exporters: {description: Address of each exporter by a name., type: dict, required: true}
  keep: {description: Beginnings of the names to keep., type: list, elements: str, required: true}
  dashboard_url: {description: Ray's dashboard on the head; empty on other nodes., type: str, default: ""}
  token_path: {description: File with Ray's token., type: path, default: /etc/ray/token}
  sys_path: {description: Where the kernel shows its devices., type: path, default: /sys}
  timeout_s: {description: Longest wait for one exporter in seconds., type: float, default: 10}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_scrape:
    exporters: {ray: http://10.0.0.12:8080/metrics}
    keep: [ray_vllm_]
"""

RETURN = r"""
at: {description: The node's time in seconds., type: float, returned: success}
texts: {description: What was kept of each exporter., type: dict, returned: success}
wire: {description: Bytes received over RDMA and over Ethernet., type: dict, returned: success}
replicas: {description: Deployment and node of each replica., type: dict, returned: success}
wanted: {description: Replicas that each deployment should have., type: dict, returned: success}
errors: {description: What could not be read and why., type: list, elements: str, returned: success}
"""


def kept(text: str, beginnings: tuple[str, ...]) -> str:
    """The lines of metrics whose names begin as asked, with their types."""
    lines = []
    for line in text.splitlines():
        name = line.split(None, 3)[2] if line.startswith("# TYPE ") else line
        if name.startswith(beginnings) and not line.startswith("# HELP "):
            lines.append(line + "\n")
    return "".join(lines)


def read(url: str, timeout_s: float) -> str:
    """An exporter's text. Raises OSError or HTTPException."""
    # No proxy: the exporter is on this node, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_s) as answer:
        return str(answer.read().decode(errors="replace"))


def received(sys_path: Path) -> dict[str, int]:
    """Bytes that came in on this node's NICs: over RDMA (counted in 4-byte words) and over Ethernet."""
    net = sum(
        int(file.read_text())
        for file in sys_path.glob("class/net/*/statistics/rx_bytes")
        if file.parts[-3] != "lo"
    )
    rdma = sum(
        4 * int(file.read_text())
        for file in sys_path.glob("class/infiniband/*/ports/*/counters/port_rcv_data")
    )
    return {"net": net, "rdma": rdma}


def placed(applications: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Serve's replicas that run, and how many each deployment should have."""
    replicas: dict[str, dict[str, Any]] = {}
    wanted: dict[str, int] = {}
    for application, state in applications.items():
        for deployment, found in state["deployments"].items():
            wanted[deployment] = found["target_num_replicas"]
            for replica in found["replicas"]:
                if replica["state"] == "RUNNING":
                    replicas[replica["replica_id"]] = {
                        "deployment": deployment,
                        "node": str(replica["node_ip"]),
                        "application": application,
                        "started": float(replica["start_time_s"] or 0.0),
                    }
    return replicas, wanted


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "exporters": {"type": "dict", "required": True},
            "keep": {"type": "list", "elements": "str", "required": True},
            "dashboard_url": {"type": "str", "default": ""},
            "token_path": {"type": "path", "default": "/etc/ray/token", "no_log": False},
            "sys_path": {"type": "path", "default": "/sys"},
            "timeout_s": {"type": "float", "default": 10.0},
        },
        supports_check_mode=True,
    )
    asked = module.params
    texts, errors = {}, []
    for name, url in asked["exporters"].items():
        try:
            texts[name] = kept(read(url, asked["timeout_s"]), tuple(asked["keep"]))
        except (OSError, HTTPException, ValueError) as error:
            errors.append(f"the exporter {name} at {url} does not answer: {error}")
    replicas: dict[str, dict[str, Any]] = {}
    wanted: dict[str, int] = {}
    if asked["dashboard_url"]:
        try:
            head = Head(asked["dashboard_url"], asked["token_path"])
            answer = head.request("GET", "/api/serve/applications/")
            replicas, wanted = placed(answer["applications"])
        except (RayError, KeyError, TypeError) as error:
            errors.append(f"Ray's head does not say what runs: {error}")
    module.exit_json(
        changed=False,
        at=time.time(),
        texts=texts,
        wire=received(Path(asked["sys_path"])),
        replicas=replicas,
        wanted=wanted,
        errors=errors,
    )


if __name__ == "__main__":
    main()
