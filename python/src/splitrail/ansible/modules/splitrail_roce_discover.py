#!/usr/bin/python
"""Find the RDMA NICs of a node and say which of them is which rail."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check

DOCUMENTATION = r"""
module: splitrail_roce_discover
short_description: Find the RDMA NICs of a node and say which of them is which rail
description:
  - Lists every RDMA NIC by PCI address, with what sysfs says of it and the GPUs nearest to it.
  - Rails that declare neither O(rails[].pci) nor O(rails[].mac) are numbered by topology, in the order of the
    GPUs beside their NICs, or of PCI where there is no GPU; never by name. What is ambiguous is refused by a
    failed check.
options:
  rails: {description: The rails as the filter C(splitrail_rails) gives them., type: list, elements: dict,
          required: true}
  ignored: {description: PCI addresses of RDMA NICs that are no rails., type: list, elements: str,
            default: []}
  sysfs: {description: Where the kernel shows its devices., type: path, default: /sys}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_roce_discover:
    rails: "{{ roce_nic_rails | splitrail_rails }}"
"""

RETURN = r"""
nics: {description: Every RDMA NIC., type: list, elements: dict, returned: always}
rails: {description: The rails with the PCI addresses found., type: list, elements: dict, returned: always}
places: {description: "Rails whose NIC sits on PCI: C(name), C(pci).", type: list, elements: dict,
         returned: always}
checks: {description: The findings., type: list, elements: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

BDF = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
CHECK = "roce_nic.discovery"
# Vendor, and the PCI class (without its last byte) of what computes: AMD's are processing accelerators or
# display controllers without a screen, NVIDIA's 3D controllers.
GPUS = {("0x1002", "0x1200"), ("0x1002", "0x0380"), ("0x10de", "0x0302")}
Check = dict[str, Any]


class Ambiguous(Exception):
    """The NICs cannot be told apart by topology; the message names them."""


@dataclass
class Nic:
    """One port of an RDMA NIC; what is unknown is empty, 0 or, for numa, -1."""

    pci: str
    netdev: str
    rdma: str
    port: int
    vendor: str
    device: str
    driver: str
    firmware: str
    psid: str
    guid: str
    numa: int
    rate: str
    pcie_speed: str
    pcie_width: str
    bond: str  # the bond or bridge that holds the netdev
    above: list[str] = field(default_factory=list)  # the PCI bridges above it, from the root
    gpus: list[str] = field(default_factory=list)  # the GPUs nearest to it, each as near as the others


@dataclass(frozen=True)
class Gpu:
    """An accelerator's place."""

    pci: str
    numa: int
    above: tuple[str, ...]


def text(path: Path) -> str:
    """A file of sysfs; empty when it is absent or its driver gives an error, as for an unused GID."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def pci_of(device: Path) -> Path | None:
    """The PCI function that a device is or belongs to: a virtio NIC has a device of its own in between."""
    if not device.exists():
        return None
    real = device.resolve()
    return next((path for path in (real, *real.parents) if BDF.match(path.name)), None)


def above(device: Path) -> list[str]:
    """The root complex and the bridges above a PCI function, from the root."""
    return [part for part in device.parts[:-1] if BDF.match(part) or re.match(r"^pci[0-9a-f]{4}:", part)]


def number(value: str, otherwise: int) -> int:
    """An integer of sysfs."""
    return int(value) if re.match(r"^-?\d+$", value) else otherwise


def rdma_nics(sysfs: Path) -> list[Nic]:
    """Every port of every RDMA NIC that sits on PCI, in the order of PCI; virtual functions left out."""
    netdevs = {path.name: pci_of(path / "device") for path in sorted((sysfs / "class/net").glob("*"))}
    nics = []
    for rdma in sorted((sysfs / "class/infiniband").glob("*")):
        for port in sorted((rdma / "ports").glob("*")):
            netdev = netdev_of(port, rdma, netdevs)
            pci = netdevs.get(netdev) or pci_of(rdma / "device")
            if pci is None or (pci / "physfn").exists():
                continue
            driver = pci / "driver"
            master = sysfs / "class/net" / netdev / "master"
            nics.append(
                Nic(
                    pci=pci.name,
                    netdev=netdev,
                    rdma=rdma.name,
                    port=number(port.name, 1),
                    vendor=text(pci / "vendor"),
                    device=text(pci / "device"),
                    driver=driver.resolve().name if driver.exists() else "",
                    firmware=text(rdma / "fw_ver"),
                    psid=text(rdma / "board_id"),
                    guid=text(rdma / "node_guid"),
                    numa=number(text(pci / "numa_node"), -1),
                    rate=text(port / "rate"),
                    pcie_speed=text(pci / "current_link_speed"),
                    pcie_width=text(pci / "current_link_width"),
                    bond=master.resolve().name if netdev and master.exists() else "",
                    above=above(pci),
                )
            )
    return sorted(nics, key=lambda nic: (nic.pci, nic.port))


def netdev_of(port: Path, rdma: Path, netdevs: dict[str, Path | None]) -> str:
    """The NIC's own interface; a VLAN or bond that has GIDs on the same device is none."""
    named = {text(path) for path in (port / "gid_attrs/ndevs").glob("*")}
    own = sorted(name for name in named if netdevs.get(name))
    if not own:
        # A port of a bond has its GIDs under the bond's name.
        pci = pci_of(rdma / "device")
        own = sorted(name for name, device in netdevs.items() if pci is not None and device == pci)
    return own[0] if own else ""


def gpus(sysfs: Path) -> list[Gpu]:
    """The accelerators, in the order of PCI, which is that of `amd-smi list`."""
    found = []
    for path in sorted((sysfs / "bus/pci/devices").glob("*")):
        if (text(path / "vendor"), text(path / "class")[:6]) in GPUS:
            real = path.resolve()
            found.append(Gpu(path.name, number(text(path / "numa_node"), -1), tuple(above(real))))
    return found


def nearness(nic: Nic, gpu: Gpu) -> tuple[int, bool]:
    """How near a NIC is to a GPU: first by the PCI bridges they share, then by NUMA node."""
    shared = 0
    for one, other in zip(nic.above, gpu.above, strict=False):
        if one != other:
            break
        shared += 1
    return shared, nic.numa == gpu.numa and nic.numa >= 0


def locate(nics: list[Nic], found: list[Gpu]) -> None:
    """Write into each NIC which GPUs are nearest to it."""
    for nic in nics:
        best = max((nearness(nic, gpu) for gpu in found), default=None)
        nic.gpus = [gpu.pci for gpu in found if nearness(nic, gpu) == best]


def in_order(nics: list[Nic]) -> list[Nic]:
    """The NICs by the order of their nearest GPUs, or of PCI where there is none. Raises Ambiguous."""
    if not any(nic.gpus for nic in nics):
        return nics
    place: dict[str, str] = {}
    for group in groups(nics):
        matches = matchings(group, 2)
        if len(group) == 1:
            place[group[0].pci] = min(group[0].gpus)
        elif len(matches) == 1:
            place.update(matches[0])
        else:
            raise Ambiguous(
                f"{', '.join(nic.pci for nic in group)} are as near as each other to the GPUs "
                f"{', '.join(sorted({gpu for nic in group for gpu in nic.gpus}))}"
            )
    return sorted(nics, key=lambda nic: place[nic.pci])


def groups(nics: list[Nic]) -> list[list[Nic]]:
    """NICs that have a nearest GPU in common, directly or through others."""
    made: list[list[Nic]] = []
    for nic in nics:
        joined = [group for group in made if any(set(nic.gpus) & set(other.gpus) for other in group)]
        made = [group for group in made if group not in joined]
        made.append([*(other for group in joined for other in group), nic])
    return made


def matchings(group: list[Nic], most: int) -> list[dict[str, str]]:
    """The ways, at most so many, to give each NIC a nearest GPU of its own."""

    def extend(rest: list[Nic], taken: dict[str, str]) -> Iterable[dict[str, str]]:
        if not rest:
            yield taken
            return
        for gpu in rest[0].gpus:
            if gpu not in taken.values():
                yield from extend(rest[1:], {**taken, rest[0].pci: gpu})

    found = []
    for one in extend(sorted(group, key=lambda nic: len(nic.gpus)), {}):
        found.append(one)
        if len(found) == most:
            break
    return found


def resolve(
    rails: list[dict[str, Any]], nics: list[Nic], ignored: list[str]
) -> tuple[list[dict[str, Any]], list[Check]]:
    """The rails with the PCI addresses that topology gives them, and the checks of that."""
    bare = [rail for rail in rails if not rail["pci"] and not rail["mac"]]
    if not bare:
        return rails, []
    usable = [nic for nic in nics if nic.pci not in ignored]
    listed = ", ".join(f"{nic.pci} ({nic.netdev or 'no interface'}, {nic.rdma})" for nic in usable) or "none"
    checks = [
        check(
            CHECK,
            "number of RDMA NICs",
            len(usable) == len(rails),
            f"{len(usable)}: {listed}",
            len(rails),
            hint="Look for the missing card with `lspci -D` and for its driver with `rdma link`, list NICs "
            "that are no rails in roce_nic_ignored, or declare `pci` of every rail in roce_nic_rails.",
        )
    ]
    for nic in usable:
        if nic.bond:
            hint = (
                f"Take {nic.netdev} out of {nic.bond}, or list it in roce_nic_ignored: a rail is a NIC alone."
            )
            checks.append(check(CHECK, nic.pci, False, f"a port of {nic.bond}", "no bond", hint=hint))
    if not all(made["ok"] for made in checks):
        return rails, checks
    hint = "Declare `pci` of every rail in roce_nic_rails: `lspci -D` and `amd-smi topology` show them."
    try:
        ordered = in_order(usable)
    except Ambiguous as why:
        return rails, [*checks, check(CHECK, "order of rails", False, str(why), "one NIC a GPU", hint=hint)]
    by = "nearest GPU" if any(nic.gpus for nic in usable) else "PCI"
    checks.append(check(CHECK, "order of rails", True, by, "one NIC a GPU", hint=hint))
    numbered = [{**rail, "pci": nic.pci} for rail, nic in zip(rails, ordered, strict=True)]
    return numbered, checks


def places(rails: list[dict[str, Any]], sysfs: Path) -> list[dict[str, str]]:
    """Where each rail's NIC sits; an empty address for one that is not there, or not on PCI."""
    by_mac: dict[str, str] = {}
    for netdev in sorted((sysfs / "class/net").glob("*")):
        pci = pci_of(netdev / "device")
        if pci is not None:
            by_mac.setdefault(text(netdev / "address"), pci.name)
    return [{"name": rail["name"], "pci": rail["pci"] or by_mac.get(rail["mac"], "")} for rail in rails]


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "rails": {"type": "list", "elements": "dict", "required": True},
            "ignored": {"type": "list", "elements": "str", "default": []},
            "sysfs": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    sysfs = Path(module.params["sysfs"])
    nics = rdma_nics(sysfs)
    locate(nics, gpus(sysfs))
    rails, checks = resolve(module.params["rails"], nics, module.params["ignored"])
    module.exit_json(
        changed=False,
        nics=[asdict(nic) for nic in nics],
        rails=rails,
        places=places(rails, sysfs),
        checks=checks,
        seconds=round(time.monotonic() - started, 1),
    )


if __name__ == "__main__":
    main()
