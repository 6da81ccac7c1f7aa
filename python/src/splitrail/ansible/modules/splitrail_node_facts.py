#!/usr/bin/python
"""Say what a node is: system, memory, disks, GPUs, addresses, and which switch each NIC hangs on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: splitrail_node_facts
short_description: Say what a node is
description:
  - Reads what an inventory declares of a node, and changes nothing. RDMA NICs are the business of
    C(splitrail_roce_discover).
  - Switches are known where lldpd runs on the node.
options:
  paths: {description: Where free space is measured; of one that is not there its nearest parent., type: list,
          elements: str, default: [/, /var/lib, /tmp]}
  sysfs: {description: Where the kernel shows its devices., type: path, default: /sys}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_node_facts:
    paths: [/var/lib, /srv/models]
"""

RETURN = r"""
node: {description: "What was found: C(hostname), C(machine_id), C(os), C(os_version), C(kernel), C(cpus),
       C(memory_gib), C(shm_gib), C(disks), C(gpus), C(gpu_gids), C(interfaces), C(lldp).", type: dict,
       returned: always}
"""

# Vendor, and the PCI class (without its last byte) of what computes; as splitrail_roce_discover has them.
GPUS = {("0x1002", "0x1200"), ("0x1002", "0x0380"), ("0x10de", "0x0302")}
GIB = 1024**3


def text(path: Path) -> str:
    """A file of the system; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def os_release(content: str) -> dict[str, str]:
    """The fields of os-release."""
    pairs = (line.split("=", 1) for line in content.splitlines() if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, value in pairs}


def meminfo_gib(content: str) -> float:
    """MemTotal in GiB; 0 where it is not told."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", content, re.MULTILINE)
    return round(int(found[1]) * 1024 / GIB, 1) if found else 0.0


def disks(paths: list[str]) -> list[dict[str, Any]]:
    """Size and free space in GiB at each path."""
    found = []
    for name in paths:
        path = Path(name)
        place = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
        used = shutil.disk_usage(place)
        found.append(
            {"path": name, "size_gib": round(used.total / GIB, 1), "free_gib": round(used.free / GIB, 1)}
        )
    return found


def gpus(sysfs: Path) -> list[dict[str, Any]]:
    """The accelerators in the order of PCI."""
    found = []
    for path in sorted((sysfs / "bus/pci/devices").glob("*")):
        vendor = text(path / "vendor")
        if (vendor, text(path / "class")[:6]) in GPUS:
            numa = text(path / "numa_node")
            found.append(
                {
                    "pci": path.name,
                    "vendor": vendor,
                    "device": text(path / "device"),
                    "numa": int(numa) if re.match(r"^-?\d+$", numa) else -1,
                }
            )
    return found


def gpu_gids(root: Path) -> list[int]:
    """Groups other than root that own the devices of AMD's GPUs."""
    nodes = [root / "dev/kfd", *sorted((root / "dev/dri").glob("*"))]
    owners = {node.stat().st_gid for node in nodes if node.exists() and not node.is_dir()}
    return sorted(owners - {0})


def interfaces(output: str) -> list[dict[str, Any]]:
    """Interfaces with their IPv4 addresses, from ``ip -json address``; the loopback is left out."""
    found = []
    for one in json.loads(output or "[]"):
        if "LOOPBACK" in one.get("flags", []):
            continue
        addresses = [
            f"{address['local']}/{address['prefixlen']}"
            for address in one.get("addr_info", [])
            if address.get("family") == "inet"
        ]
        found.append({"name": one["ifname"], "mtu": one.get("mtu", 0), "addresses": addresses})
    return found


def lldp(output: str) -> dict[str, dict[str, str]]:
    """The switch and its port behind each interface, from ``lldpcli -f json show neighbors``.

    lldpd writes one neighbour as a mapping and several as a list.
    """
    raw = json.loads(output or "{}").get("lldp", {}).get("interface", [])
    found = {}
    for entry in raw if isinstance(raw, list) else [raw]:
        for name, body in entry.items():
            chassis = body.get("chassis", {})
            switch = next(iter(chassis), "") if "id" not in chassis else chassis["id"].get("value", "")
            port = body.get("port", {})
            shown = port.get("id", {}).get("value") or port.get("descr", "")
            found[name] = {"switch": switch, "port": shown}
    return found


def said_by(argv: list[str]) -> str:
    """A tool's output; empty when it is not there or fails."""
    program = shutil.which(argv[0], path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parsed(read: Any, output: str, empty: Any) -> Any:
    """What a reader makes of a tool's output; a tool that writes something else has told nothing."""
    try:
        return read(output)
    except (ValueError, AttributeError, KeyError, TypeError):
        return empty


def look(root: Path, sysfs: Path, paths: list[str]) -> dict[str, Any]:
    """Everything that is found."""
    system = os_release(text(root / "etc/os-release"))
    shm = shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else 0.0  # noqa: S108  # measured
    return {
        "hostname": os.uname().nodename.partition(".")[0],
        "machine_id": text(root / "etc/machine-id"),
        "os": system.get("ID", ""),
        "os_version": system.get("VERSION_ID", ""),
        "kernel": os.uname().release,
        "cpus": os.cpu_count() or 0,
        "memory_gib": meminfo_gib(text(root / "proc/meminfo")),
        "shm_gib": round(shm, 1),
        "disks": disks(paths),
        "gpus": gpus(sysfs),
        "gpu_gids": gpu_gids(root),
        "interfaces": parsed(interfaces, said_by(["ip", "-json", "address"]), []),
        "lldp": parsed(lldp, said_by(["lldpcli", "-f", "json", "show", "neighbors"]), {}),
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": ["/", "/var/lib", "/tmp"]},  # noqa: S108
            "sysfs": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    node = look(Path("/"), Path(module.params["sysfs"]), module.params["paths"])
    module.exit_json(changed=False, node=node)


if __name__ == "__main__":
    main()
