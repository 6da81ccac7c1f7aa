"""A folder that looks like /sys of a server with RDMA NICs, for tests and for nodes that have none.

``build(root, devices)`` makes PCI functions in the places that ``path`` says (bridges on the way included),
and on them interfaces and RDMA devices as the mlx5 driver shows them. Standard library only: it travels to
nodes.

    python3 -m splitrail.lab.standins.sysfs ROOT < devices.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BRIDGE = {"class": "0x060400", "vendor": "0x1022", "device": "0x14a4"}
NIC = {"class": "0x020000", "vendor": "0x15b3", "device": "0x1021"}
GPU = {"class": "0x120000", "vendor": "0x1002", "device": "0x74a5"}


def build(root: Path, devices: list[dict[str, Any]]) -> None:
    """Make the devices.

    Keys: ``path`` (``pci0000:00/0000:00:01.1/0000:0c:00.0``), ``numa``, ``gpu`` (true), and of a NIC
    ``netdev``, ``rdma``, ``mac``, ``port``, ``gids`` (interfaces with GIDs on it), ``bond``, ``vf``,
    ``between`` (``virtio3``: a device between PCI and the interface), ``ecn`` and ``tc`` (false: OFED's
    files are not there, as with the kernel's own driver).
    """
    for kind in ("class/net", "class/infiniband", "bus/pci/devices"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for device in devices:
        folder = root / "devices"
        parts = device["path"].split("/")
        for part in parts:
            folder /= part
            folder.mkdir(parents=True, exist_ok=True)
            if part.startswith("pci"):
                continue
            about = BRIDGE if part != parts[-1] else GPU if device.get("gpu") else NIC
            write(folder, {**about, "numa_node": device.get("numa", -1)})
            link(root / "bus/pci/devices" / part, folder)
        if not device.get("gpu"):
            nic(root, folder, device)


def nic(root: Path, pci: Path, device: dict[str, Any]) -> None:
    """What a driver shows of a NIC."""
    write(pci, {"current_link_speed": "32.0 GT/s PCIe", "current_link_width": 16})
    if device.get("vf"):
        link(pci / "physfn", pci.parent)
    parent = pci / device["between"] if device.get("between") else pci
    netdev = device.get("netdev", "")
    if netdev:
        interface(root, parent, netdev, device)
    if not device.get("rdma"):
        return
    rdma = pci / "infiniband" / device["rdma"]
    write(rdma, {
        "fw_ver": device.get("firmware", "28.39.3004"),
        "board_id": "MT_0000000838",
        "node_guid": "946d:ae03:0000:0000",
    })  # fmt: skip
    port = rdma / "ports" / str(device.get("port", 1))
    write(port, {"rate": "400 Gb/sec (4X NDR)", "state": "4: ACTIVE"})
    for number, name in enumerate(device.get("gids", [netdev])):
        write(port / "gid_attrs/ndevs", {str(number): name})
    if device.get("tc", True):
        write(rdma / "tc/1", {"traffic_class": "Global tclass=0"})
    link(rdma / "device", pci)
    link(root / "class/infiniband" / rdma.name, rdma)


def interface(root: Path, parent: Path, netdev: str, device: dict[str, Any]) -> None:
    """A NIC's interface, and the bond that holds it."""
    folder = parent / "net" / netdev
    write(folder, {"address": device.get("mac", "02:00:00:00:00:00")})
    link(folder / "device", parent)
    link(root / "class/net" / netdev, folder)
    if device.get("ecn", True):
        for side in ("roce_np", "roce_rp"):
            write(folder / "ecn" / side / "enable", {str(priority): 0 for priority in range(8)})
    if device.get("bond"):
        bond = root / "devices/virtual/net" / device["bond"]
        bond.mkdir(parents=True, exist_ok=True)
        link(root / "class/net" / bond.name, bond)
        link(folder / "master", bond)


def write(folder: Path, files: dict[str, Any]) -> None:
    """Make a folder with files of one line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n", encoding="utf-8")


def link(at: Path, target: Path) -> None:
    """Make a link, or leave the one that is there."""
    if not at.is_symlink():
        at.symlink_to(target)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute(), json.load(sys.stdin))
