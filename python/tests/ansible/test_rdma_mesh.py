"""What the action plugin makes of the nodes' findings and of the inventory."""

from __future__ import annotations

from typing import Any

import pytest

from splitrail.ansible.action.splitrail_rdma_mesh import _nodes, ssh_variables
from splitrail.fabric.mesh_data import MeshError

PORT = {"rail": 0, "name": "rail0", "device": "mlx5_0", "gid_index": 3, "ip": "10.30.0.0", "doubts": ["x"]}


def plain(**found: Any) -> dict[str, Any]:
    return {"found": found, "addresses": {"a": "10.0.0.1", "b": "10.0.0.2"}}


def test_nodes_are_what_their_modules_found() -> None:
    one, other = _nodes(plain(b={"ports": [PORT], "boot_id": "x", "checks": []}, a={"ports": [PORT]}))
    assert (one.name, one.address, other.boot_id) == ("a", "10.0.0.1", "x")
    assert one.rails[0].doubts == ["x"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"c": {"ports": [PORT]}}, "c has no address in rdma_fabric_nodes"),
        ({"a": {"ports": []}}, "a declares no rails"),
        ({"a": {"msg": "module failed"}}, "a declares no rails"),
    ],
)
def test_a_node_that_cannot_be_measured_is_named(found: dict[str, Any], why: str) -> None:
    with pytest.raises(MeshError, match=why):
        _nodes(plain(**found))


def test_only_what_says_how_to_reach_a_host_is_read() -> None:
    host = {"ansible_host": "10.0.0.1", "ansible_user": "u", "ansible_become_password": "secret", "x": 1}
    assert ssh_variables(host) == {"ansible_host": "10.0.0.1", "ansible_user": "u"}
