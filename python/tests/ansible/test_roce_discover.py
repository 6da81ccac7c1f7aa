"""Which NIC is which rail, on trees of sysfs: an MI325X server, and servers that leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules.splitrail_roce_discover import gpus, locate, places, rdma_nics, resolve
from splitrail.lab.standins.sysfs import build
from splitrail.rails import parse

# Eight GPUs and eight NICs, each pair under a PCIe switch of its own, two sockets. The names of NICs and RDMA
# devices follow another order than the slots, as they do after a driver's update.
BUSES = ["0c", "2a", "41", "58", "86", "a5", "bd", "d5"]


def pair(bus: str, position: int) -> list[dict[str, Any]]:
    below = f"pci0000:{bus[0]}0/0000:{bus[0]}0:0{int(bus[1], 16) % 8}.1/0000:{bus}:ff.0"
    last = 7 - position
    numa = position // 4
    return [
        {
            "path": f"{below}/0000:{bus}:01.0/0000:{bus}:00.0",
            "numa": numa,
            "netdev": f"eth{last}",
            "rdma": f"mlx5_{last}",
            "mac": f"02:00:00:00:00:0{position}",
        },
        {"path": f"{below}/0000:{bus}:02.0/0000:{int(bus, 16) + 1:02x}:00.0", "numa": numa, "gpu": True},
    ]


def mi325x() -> list[dict[str, Any]]:
    return [device for position, bus in enumerate(BUSES) for device in pair(bus, position)]


def rails(count: int) -> list[dict[str, Any]]:
    return parse([{"rail": number, "address": f"10.30.{number}.0/31"} for number in range(count)])


def look(root: Path, devices: list[dict[str, Any]], count: int, ignored: list[str] | None = None) -> Any:
    build(root, devices)
    nics = rdma_nics(root)
    locate(nics, gpus(root))
    numbered, checks = resolve(rails(count), nics, ignored or [])
    return nics, [rail["pci"] for rail in numbered], [check for check in checks if not check["ok"]]


def test_rail_n_is_the_nic_beside_gpu_n(tmp_path: Path) -> None:
    nics, placed, failed = look(tmp_path, mi325x(), 8)
    assert failed == []
    assert placed == [f"0000:{bus}:00.0" for bus in BUSES]
    assert [nic.gpus for nic in nics] == [[f"0000:{int(bus, 16) + 1:02x}:00.0"] for bus in BUSES]
    first = nics[0]
    assert (first.netdev, first.rdma, first.psid, first.firmware) == (
        "eth7",
        "mlx5_7",
        "MT_0000000838",
        "28.39.3004",
    )
    assert (first.numa, first.rate, first.pcie_speed, first.pcie_width) == (
        0,
        "400 Gb/sec (4X NDR)",
        "32.0 GT/s PCIe",
        "16",
    )


def test_the_gpus_order_counts_not_the_nics(tmp_path: Path) -> None:
    """NIC 0000:f0:00.0 sits beside the first GPU."""
    devices: list[dict[str, Any]] = [
        {"path": "pci0000:80/0000:80:01.0/0000:f0:00.0", "netdev": "a", "rdma": "mlx5_0"},
        {"path": "pci0000:80/0000:80:01.0/0000:81:00.0", "gpu": True},
        {"path": "pci0000:e0/0000:e0:01.0/0000:e1:00.0", "netdev": "b", "rdma": "mlx5_1"},
        {"path": "pci0000:e0/0000:e0:01.0/0000:e2:00.0", "gpu": True},
    ]
    assert look(tmp_path, devices, 2)[1:] == (["0000:f0:00.0", "0000:e1:00.0"], [])


def test_a_missing_nic_is_counted_and_the_others_named(tmp_path: Path) -> None:
    _, placed, failed = look(tmp_path, mi325x()[2:], 8)
    (check,) = failed
    assert check["name"] == "roce_nic.discovery"
    assert check["measured"].startswith("7: 0000:2a:00.0 (eth6, mlx5_6), ")
    assert check["required"] == 8
    assert "roce_nic_ignored" in check["hint"]
    assert placed == [""] * 8


def test_a_nic_that_is_no_rail_is_ignored_when_it_is_named(tmp_path: Path) -> None:
    storage = {"path": "pci0000:f0/0000:f0:01.0/0000:f1:00.0", "netdev": "san", "rdma": "mlx5_8"}
    _, _, failed = look(tmp_path, [*mi325x(), storage], 8)
    assert [check["required"] for check in failed] == [8]
    nics = rdma_nics(tmp_path)
    locate(nics, gpus(tmp_path))
    placed, checks = resolve(rails(8), nics, ["0000:f1:00.0"])
    assert all(check["ok"] for check in checks)
    assert [rail["pci"] for rail in placed] == [f"0000:{bus}:00.0" for bus in BUSES]


def under_one_switch() -> list[dict[str, Any]]:
    above = "pci0000:00/0000:00:01.0"
    return [
        *({"path": f"{above}/0000:0{n}:00.0", "netdev": f"e{n}", "rdma": f"mlx5_{n}"} for n in (1, 2)),
        *({"path": f"{above}/0000:0{n}:00.0", "gpu": True} for n in (3, 4)),
    ]


def test_two_nics_as_near_as_each_other_are_refused(tmp_path: Path) -> None:
    _, placed, failed = look(tmp_path, under_one_switch(), 2)
    (check,) = failed
    assert check["measured"] == (
        "0000:01:00.0, 0000:02:00.0 are as near as each other to the GPUs 0000:03:00.0, 0000:04:00.0"
    )
    assert check["hint"].startswith("Declare `pci` of every rail")
    assert placed == ["", ""]


def test_more_nics_than_gpus_are_refused(tmp_path: Path) -> None:
    failed = look(tmp_path, under_one_switch()[:-1], 2)[2]
    assert "as near as each other" in failed[0]["measured"]


def test_a_tie_that_the_other_nic_settles(tmp_path: Path) -> None:
    """The first NIC is as near to either GPU; the second is nearest to one of them, so it has the other."""
    devices: list[dict[str, Any]] = [
        {"path": "pci0000:00/0000:00:01.0/0000:01:00.0", "netdev": "a", "rdma": "mlx5_0"},
        {"path": "pci0000:00/0000:00:01.0/0000:02:01.0/0000:03:00.0", "gpu": True},
        {"path": "pci0000:00/0000:00:01.0/0000:02:02.0/0000:04:00.0", "gpu": True},
        {"path": "pci0000:00/0000:00:01.0/0000:02:01.0/0000:05:00.0", "netdev": "b", "rdma": "mlx5_1"},
    ]
    assert look(tmp_path, devices, 2)[1:] == (["0000:05:00.0", "0000:01:00.0"], [])


def test_one_nic_for_two_gpus(tmp_path: Path) -> None:
    """Four NICs and eight GPUs: no NIC shares its GPUs with another, so their order is plain."""
    devices: list[dict[str, Any]] = []
    for n in (4, 3, 2, 1):
        above = f"pci0000:{n}0/0000:{n}0:01.0"
        devices += [
            {"path": f"{above}/0000:{n}1:00.0", "gpu": True},
            {"path": f"{above}/0000:{n}2:00.0", "gpu": True},
            {"path": f"{above}/0000:{n}3:00.0", "netdev": f"e{n}", "rdma": f"mlx5_{4 - n}"},
        ]
    assert look(tmp_path, devices, 4)[1:] == ([f"0000:{n}3:00.0" for n in (1, 2, 3, 4)], [])


def test_numa_decides_where_pci_does_not(tmp_path: Path) -> None:
    devices: list[dict[str, Any]] = [
        {"path": "pci0000:10/0000:10:01.0", "numa": 1, "netdev": "a", "rdma": "mlx5_0"},
        {"path": "pci0000:20/0000:20:01.0", "numa": 0, "netdev": "b", "rdma": "mlx5_1"},
        {"path": "pci0000:30/0000:30:01.0", "numa": 0, "gpu": True},
        {"path": "pci0000:40/0000:40:01.0", "numa": 1, "gpu": True},
    ]
    assert look(tmp_path, devices, 2)[1:] == (["0000:20:01.0", "0000:10:01.0"], [])


def test_without_gpus_the_order_is_that_of_pci(tmp_path: Path) -> None:
    devices = [device for device in mi325x() if not device.get("gpu")]
    assert look(tmp_path, devices, 8)[1:] == ([f"0000:{bus}:00.0" for bus in BUSES], [])


def test_a_port_of_a_bond_is_refused(tmp_path: Path) -> None:
    devices = mi325x()
    devices[0] |= {"bond": "bond0", "gids": ["bond0"]}
    _, _, failed = look(tmp_path, devices, 8)
    assert [(check["subject"], check["measured"]) for check in failed] == [
        ("0000:0c:00.0", "a port of bond0")
    ]
    assert "Take eth7 out of bond0" in failed[0]["hint"]


def test_a_vlan_over_a_nic_is_not_another_nic(tmp_path: Path) -> None:
    devices = mi325x()
    devices[0] |= {"gids": ["eth7.100", "eth7"]}
    (tmp_path / "devices/virtual/net/eth7.100").mkdir(parents=True)
    (tmp_path / "class/net").mkdir(parents=True)
    (tmp_path / "class/net/eth7.100").symlink_to(tmp_path / "devices/virtual/net/eth7.100")
    nics, _, failed = look(tmp_path, devices, 8)
    assert failed == []
    assert nics[0].netdev == "eth7"


def test_virtual_functions_are_no_nics(tmp_path: Path) -> None:
    virtual = {"path": "pci0000:00/0000:00:01.0/0000:0c:00.7", "netdev": "v", "rdma": "mlx5_9", "vf": True}
    assert len(look(tmp_path, [*mi325x(), virtual], 8)[0]) == 8


def test_a_virtio_nic_is_found_by_its_pci_slot(tmp_path: Path) -> None:
    devices: list[dict[str, Any]] = [
        {"path": f"pci0000:00/0000:00:0{n}.0/0000:0{n}:00.0", "netdev": f"enp{n}s0", "rdma": f"rxe{n}",
         "between": f"virtio{n}"}
        for n in (1, 2)
    ]  # fmt: skip
    nics, placed, failed = look(tmp_path, devices, 2)
    assert (placed, failed) == (["0000:01:00.0", "0000:02:00.0"], [])
    assert [nic.netdev for nic in nics] == ["enp1s0", "enp2s0"]


def test_an_unused_gid_is_no_fault(tmp_path: Path) -> None:
    """The driver answers a read of an unused entry with an error; a folder in its place gives one, too."""
    build(tmp_path, mi325x())
    (tmp_path / "class/infiniband/mlx5_7/ports/1/gid_attrs/ndevs/1").mkdir()
    assert rdma_nics(tmp_path)[0].netdev == "eth7"


@pytest.mark.parametrize("key", ["pci", "mac"])
def test_declared_nics_are_left_as_they_are(tmp_path: Path, key: str) -> None:
    build(tmp_path, mi325x()[2:])
    value = {"pci": "0000:0c:00.0", "mac": "02:00:00:00:00:00"}[key]
    declared = parse([{"rail": 0, key: value, "address": "10.30.0.0/31"}])
    assert resolve(declared, rdma_nics(tmp_path), []) == (declared, [])


def test_the_place_of_a_nic_that_is_declared_by_its_hardware_address(tmp_path: Path) -> None:
    build(tmp_path, mi325x())
    declared = parse(
        [
            {"rail": 0, "mac": "02:00:00:00:00:01", "address": "10.30.0.0/31"},
            {"rail": 1, "mac": "02:00:00:00:00:99", "address": "10.30.1.0/31"},
        ]
    )
    assert places(declared, tmp_path) == [
        {"name": "rail0", "pci": "0000:2a:00.0"},
        {"name": "rail1", "pci": ""},
    ]


def test_a_node_without_any(tmp_path: Path) -> None:
    _, _, failed = look(tmp_path, [], 2)
    assert failed[0]["measured"] == "0: none"
