"""The filter hands on what the parser says, with Ansible's own errors and Ansible's tagged values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader

from splitrail.ansible.filter.splitrail_topology import (
    FilterModule,
    splitrail_serving,
    splitrail_topology,
    splitrail_topology_named,
)

TEXT = """
name: small
mode: pd
model: {id: m, source: /m}
pools: {prefill: {replicas: 1}, decode: {replicas: 2}}
"""


def loaded() -> Any:
    """The topology as Ansible reads it: values that know where they come from."""
    return DataLoader().load(TEXT, file_name="/inventory/topology.yml")


def test_tagged_values_come_out_plain_with_every_default() -> None:
    filled = splitrail_topology(loaded())
    assert filled["pools"]["decode"] == {
        "replicas": 2,
        "spare": 0,
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "max_ongoing_requests": 1000,
        "engine": {},
        "env": {},
    }
    assert "aggregated" not in filled["pools"]
    assert type(filled["name"]) is str


def test_the_mode_is_an_argument() -> None:
    with pytest.raises(AnsibleFilterError, match="topology small: mode aggregated needs") as error:
        splitrail_topology(loaded(), "aggregated")
    assert error.value.__cause__ is None  # Ansible would print it too


def test_a_topology_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "small.yml").write_text(TEXT)
    assert splitrail_topology_named("small", str(tmp_path))["mode"] == "pd"
    with pytest.raises(AnsibleFilterError, match=r"no topology smal in .*, do you mean small\?"):
        splitrail_topology_named("smal", str(tmp_path))


def test_a_topology_is_fitted_to_a_site() -> None:
    site = {"nodes": {"n1": {"GPU": 2}}, "node_volumes": ["/a:/b"]}
    with pytest.raises(AnsibleFilterError, match=r"pools\.decode: 2 times 1 GPU are asked for"):
        splitrail_serving(loaded(), site)
    served = splitrail_serving(loaded(), {"nodes": {"n1": {"GPU": 3}}})
    assert list(served["pools"]) == ["prefill", "decode"]


def test_templates_find_them_by_their_names() -> None:
    assert FilterModule().filters() == {
        "splitrail_topology": splitrail_topology,
        "splitrail_topology_named": splitrail_topology_named,
        "splitrail_serving": splitrail_serving,
    }
