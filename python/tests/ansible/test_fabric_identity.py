"""splitrail_fabric_identity over a made-up sysfs, and the NIC of this machine's own loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_fabric_identity as identity

PCI = "0000:01:00.0"
MAC = "52:54:00:00:01:01"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node with a management NIC and one rail, whose virtio device lies below its PCI function."""
    virtio = tmp_path / f"sys/devices/pci0000:00/0000:00:02.0/{PCI}/virtio3"
    virtio.mkdir(parents=True)
    for name, mac in {"rail0": MAC, "eth0": "52:54:00:00:00:01", "lo": "00:00:00:00:00:00"}.items():
        write(tmp_path / f"sys/class/net/{name}/address", mac)
    (tmp_path / "sys/class/net/rail0/device").symlink_to(virtio)
    device = tmp_path / "sys/class/infiniband/rxe_a"
    write(device / "ports/1/gid_attrs/ndevs/0", "rail0")
    write(device / "node_guid", "5054:00ff:fe00:0101")
    write(device / "fw_ver", "1.2.3")
    write(tmp_path / "sys/class/infiniband/mlx5_9/ports/1/gid_attrs/ndevs/0", "eth0")
    return tmp_path


@pytest.mark.parametrize("by", [{"pci": PCI}, {"mac": MAC}, {"name": "rail0"}])
def test_a_rail_is_found_by_its_nic(root: Path, by: dict[str, str]) -> None:
    assert identity.nics_of(root, [{"rail": 0, "name": "railX", "pci": "", "mac": "", **by}]) == [
        {
            "rail": 0,
            "name": "rail0",
            "rdma_device": "rxe_a",
            "pci": PCI,
            "mac": MAC,
            "guid": "5054:00ff:fe00:0101",
            "firmware": "1.2.3",
        }
    ]


@pytest.mark.parametrize("by", [{"pci": "0000:09:00.0"}, {"mac": "52:54:00:00:09:09"}])
def test_a_nic_that_is_not_here_is_left_out(root: Path, by: dict[str, str]) -> None:
    assert identity.nics_of(root, [{"rail": 0, "name": "rail0", "pci": "", "mac": "", **by}]) == []


def test_a_nic_without_rdma_or_pci(root: Path) -> None:
    nic: dict[str, Any] = identity.describe(root, "lo", None)
    assert (nic["rail"], nic["rdma_device"], nic["pci"], nic["guid"]) == (None, "", "", "")


def test_the_holder_of_an_address() -> None:
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "host0", "addr_info": [{"local": "fe80::1"}, {"local": "10.87.0.11"}]},
    ]
    assert identity.holder_of(links, "10.87.0.11") == "host0"
    assert identity.holder_of(links, "10.87.0.12") == ""
