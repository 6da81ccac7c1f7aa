"""Measure RDMA between every pair of nodes, and say of each host what was found.

Arguments:
  found: what M(splitrail_fabric_node) returned, by host.
  addresses: where the nodes reach each other's tests, by host.
  settings: how to measure; the keys are those of splitrail.fabric.mesh_data.Settings.
  thresholds: rows that are looked at before splitrail/fabric/thresholds.yml.

Runs on the controller, once for all hosts: one agent a node over SSH, which leaves nothing there (see
splitrail.fabric.drive). Returns ``by_host``: the findings of each host, for splitrail_verdict. Keeps all
that was measured in the run record as ``mesh/mesh.json``, a journal beside it, and draws ``fabric.html``.
In a run that resumes another one, pairs that were measured and well are not measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from pydantic import ValidationError

from splitrail.ansible.module_utils.splitrail_checks import unmade
from splitrail.fabric.drive import Agent
from splitrail.fabric.drive_ssh import open_channel
from splitrail.fabric.mesh import Mesh
from splitrail.fabric.mesh_checks import judge
from splitrail.fabric.mesh_data import Journal, MeshError, Node, RailPort, Settings
from splitrail.fabric.mesh_fleet import fleet_checks
from splitrail.fabric.mesh_resume import doubtful, known_readings
from splitrail.fabric.report import draw
from splitrail.fabric.thresholds import load as load_thresholds


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, given = self.validate_argument_spec(
            argument_spec={
                "found": {"type": "dict", "required": True},
                "addresses": {"type": "dict", "required": True},
                "settings": {"type": "dict", "default": {}},
                "thresholds": {"type": "list", "elements": "dict", "default": []},
            }
        )
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        plain = json.loads(json.dumps(given))
        folder = os.environ.get("SPLITRAIL_RUN_DIR")
        if not folder:
            raise AnsibleActionFail(
                "no run record to keep the mesh in: enable the callback splitrail_record in ansible.cfg "
                "(callbacks_enabled), or set SPLITRAIL_RUN_DIR to a folder"
            )
        try:
            nodes, settings = _nodes(plain), Settings.model_validate(plain["settings"])
            by_host = self._measure(Path(folder), nodes, settings, plain["thresholds"], variables)
        except MeshError as error:
            hint = (
                "Correct what is named, and run the proof again: nothing is served over what is not proven."
            )
            found = unmade(
                "fabric.mesh", "every node pair", str(error), "RDMA measured between every pair", hint=hint
            )
            by_host = {name: [found] for name in plain["found"]}
        except (ValidationError, OSError) as error:
            raise AnsibleActionFail(f"the mesh could not be measured: {error}") from error
        result.update(changed=False, by_host=by_host)
        return result

    def _measure(
        self,
        run_dir: Path,
        nodes: list[Node],
        settings: Settings,
        own_rows: list[Any],
        variables: Mapping[str, Any],
    ) -> dict[str, Any]:
        rows = load_thresholds(own_rows)
        hosts = variables["hostvars"]
        say = self._display.display

        def open_agent(node: Node) -> Agent:
            return Agent(node.name, open_channel(node.name, ssh_variables(hosts[node.name])))

        known, source, why = known_readings(run_dir, settings, nodes, rows)
        if why:
            say(f"mesh: measured from its start: {why}")
        mesh = Mesh(
            nodes,
            settings,
            open_agent,
            Journal(run_dir),
            say=lambda text: say(f"mesh: {text}"),
            doubtful=lambda readings: doubtful(readings, settings, nodes, rows),
        )
        made = mesh.run(str(variables.get("inventory_dir") or "").rpartition("/")[2], known, source)
        made.own_thresholds = own_rows
        made.save(run_dir)
        judgement = judge(made, rows)
        say(f"mesh: picture in {draw(run_dir, made, judgement, rows)}")
        compared = fleet_checks(nodes)
        return {node.name: [*judgement.checks[node.name], *compared.get(node.name, [])] for node in nodes}


def ssh_variables(host: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that say how a host is reached; Ansible templates each as it is read."""
    names = (
        "connection",
        "host",
        "ssh_host",
        "port",
        "ssh_port",
        "user",
        "ssh_user",
        "ssh_private_key_file",
        "private_key_file",
        "ssh_common_args",
        "ssh_extra_args",
    )
    return {f"ansible_{name}": host[f"ansible_{name}"] for name in names if f"ansible_{name}" in host}


def _nodes(plain: Mapping[str, Any]) -> list[Node]:
    """The nodes to measure. Raises MeshError for one without address or rails."""
    made = []
    for name, found in sorted(plain["found"].items()):
        if name not in plain["addresses"]:
            raise MeshError(f"{name} has no address in rdma_fabric_nodes: add it")
        if not found.get("ports"):
            raise MeshError(f"{name} declares no rails: set rdma_fabric_rails")
        ports = [RailPort.model_validate(port) for port in found["ports"]]
        made.append(
            Node(name=name, address=plain["addresses"][name], boot_id=found.get("boot_id", ""), rails=ports)
        )
    return made
