#!/usr/bin/python
"""Say what a node is to its fabric: this boot of it, and the NICs of its rails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_rdma import device_of

DOCUMENTATION = r"""
module: splitrail_fabric_identity
short_description: Say what a node is to its fabric
description:
  - A proof of the fabric holds for this very node only. Returns what it is bound to.
  - Changes nothing on the node, in check mode or not.
options:
  rails:
    description: The rails as the filter P(splitrail_rails#filter) gives them.
    type: list
    elements: dict
    default: []
  address:
    description: Without rails, the address whose NIC is the fabric's.
    type: str
    default: ""
author: The splitrail authors
"""

RETURN = r"""
identity:
  description: >-
    boot_id, and nics with rail, name, rdma_device, pci, mac, guid and firmware. A rail whose NIC is not here
    is not in it.
  returned: always
  type: dict
"""

Json = dict[str, Any]


def read(path: Path) -> str:
    """A sysfs value, or "" where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def netdevs(root: Path) -> list[str]:
    """Every network interface of the node."""
    return sorted(path.name for path in (root / "sys/class/net").glob("*") if (path / "address").exists())


def pci_of(root: Path, netdev: str) -> str:
    """The PCI address of a NIC, or "" for one that is on no PCI bus."""
    device = (root / "sys/class/net" / netdev / "device").resolve()
    # A virtio NIC's device is a child of its PCI function.
    for folder in (device, *device.parents):
        parts = folder.name.split(":")
        if len(parts) == 3 and "." in parts[2]:  # noqa: PLR2004  domain:bus:slot.function
            return folder.name
    return ""


def describe(root: Path, netdev: str, rail: int | None) -> Json:
    """One NIC."""
    device = device_of(netdev, root)
    infiniband = root / "sys/class/infiniband" / (device or "-")
    return {
        "rail": rail,
        "name": netdev,
        "rdma_device": device,
        "pci": pci_of(root, netdev),
        "mac": read(root / "sys/class/net" / netdev / "address"),
        "guid": read(infiniband / "node_guid"),
        "firmware": read(infiniband / "fw_ver"),
    }


def nics_of(root: Path, rails: list[Json]) -> list[Json]:
    """The NICs of the rails that are here.

    A rail's NIC is known by the PCI or hardware address declared; where neither is, by the rail's name, which
    the node's own topology gave it.
    """
    found = []
    for rail in rails:
        key = next(key for key in ("pci", "mac", "name") if rail.get(key))
        for netdev in netdevs(root):
            mac = read(root / "sys/class/net" / netdev / "address")
            known = {"pci": pci_of(root, netdev), "mac": mac, "name": netdev}
            if known[key] == rail[key]:
                found.append(describe(root, netdev, int(rail["rail"])))
                break
    return found


def holder_of(addresses: list[Json], address: str) -> str:
    """The interface that holds an address, from what ``ip -json address`` says; "" for none."""
    for link in addresses:
        if any(info.get("local") == address for info in link.get("addr_info", [])):
            return str(link["ifname"])
    return ""


def main() -> None:
    """Look, and hand out what was found."""
    module = AnsibleModule(
        argument_spec={
            "rails": {"type": "list", "elements": "dict", "default": []},
            "address": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    root = Path("/")
    rails, address = module.params["rails"], module.params["address"]
    if rails:
        nics = nics_of(root, rails)
    else:
        _, out, _ = module.run_command(["ip", "-json", "address", "show"], check_rc=True)
        name = holder_of(json.loads(out), address)
        nics = [describe(root, name, None)] if name else []
    boot_id = read(root / "proc/sys/kernel/random/boot_id")
    module.exit_json(changed=False, identity={"boot_id": boot_id, "nics": nics})


if __name__ == "__main__":
    main()
