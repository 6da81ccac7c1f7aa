#!/usr/bin/python
"""Look at the RDMA side of a node's rails: what must be right before any data is sent."""

from __future__ import annotations

import re
import resource
import struct
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check

DOCUMENTATION = r"""
module: splitrail_fabric_node
short_description: Look at the RDMA side of a node's rails
description:
  - Finds the RDMA device and the RoCE v2 GID of each rail, and checks link, rate, PCIe width, MTU, the way to
    GPU memory, ACS and the limit of locked memory.
  - Changes nothing, in check mode or not. QoS is M(splitrail_roce_nic)'s.
options:
  rails: {description: The rails as the filter C(splitrail_rails) gives them., type: list, elements: dict,
          required: true}
  mtu: {description: RDMA MTU that each rail must carry., type: int, default: 4096}
  rate_gbps: {description: Link rate in Gb/s; 0 leaves it to the comparison of the nodes., type: float,
              default: 0.0}
  memlock_mib: {description: Least limit of locked memory in MiB; -1 for unlimited., type: int, default: -1}
  gpu: {description: Whose GPU memory the rails carry., type: str, choices: [none, rocm], default: none}
  root: {description: Folder with C(sys), C(proc) and C(boot)., type: path, default: /}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_fabric_node:
    rails: "{{ roce_nic_rails | splitrail_rails }}"
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
ports: {description: What the mesh needs to know of each rail., type: list, elements: dict, returned: always}
boot_id: {description: Which boot of the node these findings are of., type: str, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Check = dict[str, Any]
Rail = dict[str, Any]

ROCE_V2 = "RoCE v2"
MTUS = (4096, 2048, 1024, 512, 256)
# What the kernel keeps for RDMA headers of an Ethernet MTU: GRH 40, UDP 8, BTH 12, XRC 4, atomic 28, ICRC 4.
HEADERS = 96
PEER_MEMORY = (
    "sys/kernel/mm/memory_peers/amdkfd/version",
    "sys/kernel/memory_peers/amdkfd/version",
    "sys/memory_peers/amdkfd/version",
)
DMABUF = ("CONFIG_PCI_P2PDMA", "CONFIG_DMABUF_MOVE_NOTIFY")
ACS, EXTENDED = 0x000D, 0x100
# A rail that fails one of these can carry no test.
VITAL = ("fabric.device", "fabric.link", "fabric.gid")


def read(path: Path) -> str:
    """A file's text without its end of line; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Node:
    """The node's files, under a root of their own in tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = self._devices()

    def _devices(self) -> dict[str, str]:
        """The RDMA device of each interface: the one that has a GID on it."""
        found: dict[str, str] = {}
        for ndev in sorted((self.root / "sys/class/infiniband").glob("*/ports/1/gid_attrs/ndevs/*")):
            name = read(ndev)
            if name:
                found.setdefault(name, ndev.parents[4].name)
        # Soft-RoCE without any GID still says whose it is.
        for parent in sorted((self.root / "sys/class/infiniband").glob("*/parent")):
            found.setdefault(read(parent), parent.parent.name)
        # So does a card whose interface shares its PCI device.
        for device in sorted((self.root / "sys/class/infiniband").glob("*/device/net/*")):
            found.setdefault(device.name, device.parents[2].name)
        return found

    def net(self, name: str) -> Path:
        return self.root / "sys/class/net" / name

    def port(self, device: str) -> Path:
        return self.root / "sys/class/infiniband" / device / "ports/1"

    def pci(self, name: str) -> str:
        """The PCI address of an interface's card; empty when it has none."""
        device = self.net(name) / "device"
        try:
            # A virtio interface hangs below its PCI device.
            parts = device.resolve(strict=True).parts
        except OSError:
            return ""
        return next(
            (part for part in reversed(parts) if re.fullmatch(r"[0-9a-f]{4}(:[0-9a-f]{2}){2}\.[0-7]", part)),
            "",
        )

    def soft(self, device: str) -> bool:
        """Whether the device is a driver over an ordinary interface, without a card of its own."""
        return bool(device) and not (self.root / "sys/class/infiniband" / device / "device").exists()


def gids(node: Node, device: str) -> list[tuple[int, str, str, str]]:
    """All GIDs of a device: index, type, interface, value."""
    attributes = node.port(device) / "gid_attrs"
    found = []
    for entry in (attributes / "types").glob("*"):
        kind = read(entry)  # an unused entry cannot be read
        if kind:
            number = entry.name
            value = read(node.port(device) / "gids" / number)
            found.append((int(number), kind, read(attributes / "ndevs" / number), value))
    return sorted(found)


def mapped_ip(gid: str) -> str:
    """The IPv4 address that a GID stands for; empty when it is none."""
    digits = gid.replace(":", "")
    if len(digits) != 32 or not digits.startswith("0" * 20 + "ffff"):  # noqa: PLR2004
        return ""
    return ".".join(str(int(digits[place : place + 2], 16)) for place in range(24, 32, 2))


def rdma_mtu(netdev: int) -> int:
    """The RDMA MTU that the kernel makes of an interface's."""
    return next((mtu for mtu in MTUS if mtu <= netdev - HEADERS), 0)


def number(text: str) -> float:
    """The figure that a text begins with; 0 when there is none."""
    found = re.match(r"[0-9.]+", text)
    return float(found.group()) if found else 0.0


def rail_checks(node: Node, rail: Rail, mtu: int, rate: float) -> list[Check]:
    """All checks of a rail. What has no device has no GID, and only that is said."""
    name, device = rail["name"], node.devices.get(rail["name"], "")
    made = [
        check(
            "fabric.device",
            name,
            bool(device),
            device or "no RDMA device",
            "an RDMA device on it",
            hint=f"Load the NIC's RDMA driver (mlx5_ib) and look at `rdma link`: none is on {name}.",
        ),
        link_check(node, name, device),
        mtu_check(node, name, mtu),
    ]
    if not device:
        return made
    made.append(gid_check(node, rail, device))
    if node.soft(device):
        return made  # its rate is a figure of speech, and it sits in no slot
    if rate:
        measured = number(read(node.port(device) / "rate"))
        made.append(
            check(
                "fabric.rate",
                f"{name} {device}",
                measured >= rate,
                measured,
                rate,
                unit="Gb/s",
                hint=f"Check cable, transceiver and switch port of {name}: it came up slower than declared.",
            )
        )
    return [*made, width_check(node, name, device)]


def link_check(node: Node, name: str, device: str) -> Check:
    state = read(node.port(device) / "state") if device else ""
    if not node.net(name).exists():
        measured = "no such interface"
    elif read(node.net(name) / "carrier") != "1":
        measured = "no carrier"
    elif state and "ACTIVE" not in state:
        measured = f"RDMA port {state}"
    else:
        measured = "up"
    made: Check = check(
        "fabric.link",
        name,
        measured == "up",
        measured,
        "up",
        hint=f"Bring up {name}: check cable, transceiver and switch port, and `ip link show {name}`.",
    )
    return made


def mtu_check(node: Node, name: str, mtu: int) -> Check:
    netdev = int(number(read(node.net(name) / "mtu")))
    measured = rdma_mtu(netdev)
    made: Check = check(
        "fabric.mtu",
        f"{name} (MTU {netdev})",
        measured >= mtu,
        measured,
        mtu,
        unit="B",
        hint=f"Give {name} an MTU of {mtu + HEADERS} or more (9000 is usual), here and at the switch.",
    )
    return made


def gid_check(node: Node, rail: Rail, device: str) -> Check:
    """The GID by what it is, never by its number: that differs between drivers and with every address."""
    mine = [entry for entry in gids(node, device) if entry[2] == rail["name"]]
    index = gid_index(node, rail, device)
    shown = [f"{place}: {kind} {mapped_ip(gid) or gid}" for place, kind, _, gid in mine]
    measured = f"index {index}" if index is not None else f"not among {', '.join(shown) or 'none'}"
    made: Check = check(
        "fabric.gid",
        f"{rail['name']} {device}",
        index is not None,
        measured,
        f"{ROCE_V2} GID of {rail['ip']}",
        hint=f"Give {rail['name']} its address {rail['address']} and switch on RoCE v2: the kernel makes the "
        "GID of the address.",
    )
    return made


def gid_index(node: Node, rail: Rail, device: str) -> int | None:
    """Where the RoCE v2 GID of the rail's address is."""
    for place, kind, ndev, gid in gids(node, device):
        if (kind, ndev, mapped_ip(gid)) == (ROCE_V2, rail["name"], rail["ip"]):
            return place
    return None


def width_check(node: Node, name: str, device: str) -> Check:
    """Whether the card runs as wide and as fast as it can."""
    card = node.root / "sys/class/infiniband" / device / "device"
    shown = [
        f"x{read(card / f'{side}_link_width')} at {read(card / f'{side}_link_speed')}"
        for side in ("current", "max")
    ]
    subject, hint = (
        f"{name} {device}",
        f"Reseat the card of {name}, and look at its slot and riser: `lspci -vv`, LnkSta.",
    )
    if not read(card / "max_link_width"):
        shown = ["could not be checked: the kernel shows no PCIe width", "the card's own"]
    made: Check = check("fabric.width", subject, shown[0] == shown[1], shown[0], shown[1], hint=hint)
    return made


def acs_devices(node: Node) -> list[str] | None:
    """PCI devices that validate the source of peer transactions; None when no configuration can be read."""
    found, readable = [], False
    for config in sorted((node.root / "sys/bus/pci/devices").glob("*/config")):
        try:
            space = config.read_bytes()
        except OSError:
            continue
        readable = readable or len(space) >= 64  # noqa: PLR2004  # a header
        if acs_control(space) & 1:
            found.append(config.parent.name)
    return found if readable else None


def acs_control(space: bytes) -> int:
    """The ACS control register in a PCI configuration space; 0 when there is none."""
    place, seen = EXTENDED, set()
    while place and place not in seen and place + 8 <= len(space):
        seen.add(place)
        (header,) = struct.unpack_from("<I", space, place)
        if header & 0xFFFF == ACS:
            return int(struct.unpack_from("<H", space, place + 6)[0])
        place = header >> 20
    return 0


def acs_check(node: Node) -> Check:
    hint = "Switch ACS off (`setpci -s BDF ECAP_ACS+0x6.w=0000`) on them; the setting is lost at each boot."
    found = acs_devices(node)
    if found is None:
        why = "could not be checked: no PCI configuration can be read"
        none: Check = check("fabric.acs", "PCI devices", False, why, "no SrcValid+", hint=hint)
        return none
    some = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")  # noqa: PLR2004
    made: Check = check(
        "fabric.acs",
        "PCI devices",
        not found,
        f"SrcValid+ on {some}" if found else "no SrcValid+",
        "no SrcValid+",
        hint=hint,
    )
    return made


def memlock_check(required: int, limit: int) -> Check:
    """``limit`` is in bytes as the kernel has it: -1 is unlimited."""
    measured = -1 if limit == resource.RLIM_INFINITY else limit >> 20
    enough = measured == -1 or (required != -1 and measured >= required)
    made: Check = check(
        "fabric.memlock",
        "locked memory",
        enough,
        "unlimited" if measured == -1 else measured,
        "unlimited" if required == -1 else required,
        unit="MiB",
        hint="Raise memlock in /etc/security/limits.d, log in again; RDMA pins what it registers.",
    )
    return made


def gpu_memory(node: Node) -> str:
    """How a NIC reaches GPU memory on this node: peermem, dmabuf, or neither (empty)."""
    if any((node.root / path).exists() for path in PEER_MEMORY):
        return "peermem"
    if "ib_register_peer_memory_client" in read(node.root / "proc/kallsyms"):
        return "peermem"
    release = read(node.root / "proc/sys/kernel/osrelease")
    config = read(node.root / f"boot/config-{release}").splitlines()
    return "dmabuf" if all(f"{option}=y" in config for option in DMABUF) else ""


def gpus(node: Node) -> list[str]:
    """PCI addresses of the GPUs, in the order of ROCm's device numbers."""
    found = []
    folder = node.root / "sys/class/kfd/kfd/topology/nodes"
    for entry in sorted(folder.glob("*"), key=lambda path: int(path.name) if path.name.isdigit() else -1):
        lines = read(entry / "properties").splitlines()
        properties = dict(line.split(" ", 1) for line in lines if " " in line)
        if int(number(properties.get("simd_count", "0"))):
            place, domain = int(properties.get("location_id", 0)), int(properties.get("domain", 0))
            found.append(f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}")
    return found


def nearest_gpu(node: Node, pci: str) -> int | None:
    """The number of the GPU that shares most of a card's way to the CPU; None when two do, or none does."""

    def way(address: str) -> list[str]:
        return list((node.root / "sys/bus/pci/devices" / address).resolve().parts)

    def shared(address: str) -> int:
        pairs = zip(way(pci), way(address), strict=False)
        return next((count for count, (one, other) in enumerate(pairs) if one != other), 0)

    ranked = sorted(((shared(address), index) for index, address in enumerate(gpus(node))), reverse=True)
    if not pci or not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def gpu_checks(node: Node, rails: list[Rail]) -> list[Check]:
    """The way to GPU memory, and whether each rail has one nearest GPU."""
    how = gpu_memory(node)
    made = [
        check(
            "fabric.gpu_memory",
            "GPU memory",
            bool(how),
            how or "neither peer memory nor dmabuf",
            "peermem or dmabuf",
            hint="Install the NIC's driver stack before amdgpu-dkms, so that this has peer memory, or "
            f"boot a kernel with {' and '.join(DMABUF)}.",
        )
    ]
    for rail in rails:
        found = nearest_gpu(node, node.pci(rail["name"]))
        made.append(
            check(
                "fabric.gpu",
                rail["name"],
                found is not None,
                f"GPU {found}" if found is not None else f"none nearest of {len(gpus(node))}",
                "one nearest GPU",
                hint=f"Compare the slot of {rail['name']} with `amd-smi topology`: which GPU is beside it?",
            )
        )
    return made


def port_of(node: Node, rail: Rail, gpu: str, failed: set[tuple[str, str]]) -> dict[str, Any]:
    """What the mesh needs to know of a rail."""
    name, device = rail["name"], node.devices.get(rail["name"], "")
    card = node.root / "sys/class/infiniband" / device
    return {
        "rail": rail["rail"],
        "name": name,
        "device": device,
        "gid_index": gid_index(node, rail, device) if device else None,
        "ip": rail["ip"],
        "gateway": rail["gateway"],
        "rate_gbps": number(read(node.port(device) / "rate")) if device else 0.0,
        "soft": node.soft(device),
        "gpu": nearest_gpu(node, node.pci(name)) if gpu == "rocm" else None,
        "dmabuf": gpu == "rocm" and gpu_memory(node) == "dmabuf",
        "firmware": read(card / "fw_ver") if device else "",
        "board": read(card / "board_id") if device else "",
        "faults": [vital for vital in VITAL if (vital, name) in failed],
        "doubts": sorted(made for made, whose in failed if whose == name and made not in VITAL),
    }


def look(node: Node, wanted: dict[str, Any], memlock: int) -> dict[str, Any]:
    """Everything that is said of a node."""
    rails, checks = wanted["rails"], []
    for rail in rails:
        checks += rail_checks(node, rail, wanted["mtu"], wanted["rate_gbps"])
    checks += [acs_check(node), memlock_check(wanted["memlock_mib"], memlock)]
    if wanted["gpu"] != "none":
        checks += gpu_checks(node, rails)
    failed = {(made["name"], made["subject"].split()[0]) for made in checks if not made["ok"]}
    ports = [port_of(node, rail, wanted["gpu"], failed) for rail in rails]
    boot_id = read(node.root / "proc/sys/kernel/random/boot_id")
    return {"checks": checks, "ports": ports, "boot_id": boot_id}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "rails": {"type": "list", "elements": "dict", "required": True},
            "mtu": {"type": "int", "default": 4096},
            "rate_gbps": {"type": "float", "default": 0.0},
            "memlock_mib": {"type": "int", "default": -1},
            "gpu": {"type": "str", "choices": ["none", "rocm"], "default": "none"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    found = look(Node(Path(module.params["root"])), module.params, limit)
    module.exit_json(changed=False, seconds=round(time.monotonic() - started, 2), **found)


if __name__ == "__main__":
    main()
