"""Reading an inventory: what is good, and what a person is told when it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.lab.run import LabError
from splitrail.lab.spec import load, parse

INVENTORY = Path("/srv/inventories/try/hosts.yml")


def every(listing: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Set variables on all hosts."""
    for host in listing["_meta"]["hostvars"].values():
        host.update(values)
    return listing


def test_good_lab(listing: dict[str, Any]) -> None:
    lab = parse(INVENTORY, listing)
    assert (lab.bridge, str(lab.gateway), lab.kind) == ("sr-try", "10.66.0.1", "container")
    assert lab.key == Path("/srv/inventories/.lab/try/id_ed25519")
    assert lab.known_hosts == Path("/srv/inventories/.lab/try/known_hosts")
    assert [(node.name, str(node.address), node.groups) for node in lab.nodes] == [
        ("n1", "10.66.0.11", ("head",)),
        ("n2", "10.66.0.12", ("decode", "workers")),
    ]


def test_select(listing: dict[str, Any]) -> None:
    lab = parse(INVENTORY, listing)
    assert [node.name for node in lab.select([])] == ["n1", "n2"]
    assert [node.name for node in lab.select(["n2"])] == ["n2"]
    with pytest.raises(LabError, match=r"hosts\.yml: no host `n3`; it has n1, n2"):
        lab.select(["n3"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lab_name": "Too_Long_A_Name"}, "lab_name: .*'Too_Long_A_Name'.*up to 12 of a-z"),
        ({"lab_kind": "cloud"}, "lab_kind: .*'cloud'.*set it to `container` or `vm`"),
        ({"lab_network": "10.66.0.0/33"}, "lab_network: .*such as 10.87.0.0/24"),
        ({"lab_network": "10.66.0.5/24"}, "lab_network: .*such as 10.87.0.0/24"),
        ({"lab_network": "8.8.8.0/24"}, "lab_network: .*not a private network"),
        ({"lab_shm_gib": 0}, "lab_shm_gib: .*above 0"),
        ({"lab_boot_seconds": "soon"}, "lab_boot_seconds: .*'soon'"),
        ({"lab_shm_gb": 4}, "lab_shm_gb is no key of the lab; did you mean lab_shm_gib"),
        ({"lab_mounts": [{"source": "a"}]}, r"lab_mounts\[0\]\.target: "),
        ({"lab_mounts": [{"source": "a", "target": "b"}]}, r"lab_mounts\[0\]\.target: .*absolute"),
        ({"lab_mounts": [{"source": "a", "target": "/b", "mode": 1}]}, r"lab_mounts\[0\]\.mode: "),
        (
            {"lab_mounts": [{"source": "a", "target": "/b", "groups": ["no"]}]},
            "lab_mounts /b: no host is in the group `no`",
        ),
        ({"ansible_host": "10.66.1.11"}, "n1: ansible_host 10.66.1.11 is no host address of 10.66.0.0/24"),
        ({"ansible_host": "10.66.0.255"}, "n1: ansible_host 10.66.0.255 is no host address"),
        ({"ansible_host": "10.66.0.1"}, "n1: ansible_host 10.66.0.1 is taken by this host"),
        ({"ansible_host": "10.66.0.9"}, "n2: ansible_host 10.66.0.9 is taken by n1"),
        ({"ansible_host": "lab.example"}, "ansible_host: n1: .*an IPv4 address inside lab_network"),
        ({"ansible_host": None}, "ansible_host: n1: not set"),
        ({"ansible_user": "Root User"}, "ansible_user: "),
        ({"lab_name": "{{ nowhere }}"}, "lab_name of n1: 'nowhere' is undefined"),
    ],
)
def test_bad_values_name_key_and_cure(listing: dict[str, Any], values: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError, match=rf"hosts\.yml: {said}"):
        parse(INVENTORY, every(listing, **values))


def as_vms(listing: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The same lab of VMs."""
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_mounts"]
    return every(listing, lab_kind="vm", **values)


def test_good_lab_of_vms(listing: dict[str, Any]) -> None:
    lab = parse(INVENTORY, as_vms(listing))
    assert (lab.kind, lab.memory_mib, lab.cpus, lab.rails, lab.rail_bridges) == ("vm", 1536, 1, 0, ())
    # A template's value is text.
    lab = parse(INVENTORY, every(listing, lab_memory_mib=2048, lab_cpus=2, lab_rails="{{ 1 + 7 }}"))
    assert (lab.memory_mib, lab.cpus, lab.rails) == (2048, 2, 8)
    assert lab.rail_bridges[:2] == ("sr-try.r0", "sr-try.r1")
    longest = parse(INVENTORY, every(listing, lab_name="a23456789"))
    assert max(len(name) for name in longest.rail_bridges) == 15


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lab_memory_mib": 100}, "lab_memory_mib: .*got 100.*a size in MiB from 512 on"),
        ({"lab_cpus": 0}, "lab_cpus: .*a number of processors from 1 to 64"),
        ({"lab_rails": 9}, "lab_rails: .*got 9.*from 0 to 8"),
        ({"lab_rails": -1}, "lab_rails: .*from 0 to 8"),
        ({"lab_shm_gib": 4}, "lab_shm_gib is for lab_kind `container` only, and this one is `vm`; remove it"),
        (
            {"lab_mounts": [{"source": "a", "target": "/b", "writable_on": ["head"]}]},
            "lab_mounts /b: VMs only read what they see; remove writable_on",
        ),
        ({"lab_mounts": [{"source": "a", "target": "/b"}] * 9}, r"lab_mounts: a VM has up to 8 .*got 9"),
        ({"lab_name": "a234567890"}, "lab_name of a lab of VMs has up to 9 characters"),
    ],
)
def test_bad_values_of_a_lab_of_vms(listing: dict[str, Any], values: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError, match=rf"hosts\.yml: {said}"):
        parse(INVENTORY, as_vms(listing, **values))


@pytest.mark.parametrize(("key", "value"), [("lab_memory_mib", 1536), ("lab_cpus", 1), ("lab_rails", 1)])
def test_keys_of_vms_are_refused_for_containers(listing: dict[str, Any], key: str, value: int) -> None:
    with pytest.raises(LabError, match=f"{key} is for lab_kind `vm` only, and this one is `container`"):
        parse(INVENTORY, every(listing, **{key: value}))


def test_missing_key(listing: dict[str, Any]) -> None:
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_network"]
    with pytest.raises(LabError, match="lab_network: Field required; cure: a private IPv4 network"):
        parse(INVENTORY, listing)


def test_differing_values(listing: dict[str, Any]) -> None:
    listing["_meta"]["hostvars"]["n2"]["lab_name"] = "other"
    with pytest.raises(LabError, match="lab_name is 'try' on n1 and 'other' on n2; set it once"):
        parse(INVENTORY, listing)


def test_host_name_that_no_machine_can_have(listing: dict[str, Any]) -> None:
    hosts = listing["_meta"]["hostvars"]
    hosts["n_3"] = {**hosts.pop("n2")}
    with pytest.raises(LabError, match="n_3: not a host name"):
        parse(INVENTORY, listing)


def test_no_hosts_and_no_inventory(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no host with variables"):
        parse(INVENTORY, {"_meta": {"hostvars": {}}})
    with pytest.raises(LabError, match="no such inventory; name one with -i"):
        load(tmp_path / "nowhere")


def test_the_projects_own_inventories_are_good() -> None:
    fabric = load(Path(__file__).parents[3] / "inventories/lab-fabric")
    assert (fabric.kind, fabric.rails, len(fabric.nodes)) == ("vm", 2, 4)
    lab = load(Path(__file__).parents[3] / "inventories/lab")
    assert {"head", "prefill", "decode"} <= {group for node in lab.nodes for group in node.groups}
    assert lab.key == Path(__file__).parents[3] / ".lab" / lab.name / "id_ed25519"
