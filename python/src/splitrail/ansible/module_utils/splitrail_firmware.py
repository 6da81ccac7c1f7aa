"""What the running system shows of its firmware's settings; nothing here changes one.

Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

GIB = 1024**3
_AMD = "0x1002"
# PCI base classes of GPUs: display controllers, and processing accelerators.
_GPU_CLASSES = ("0x03", "0x12")


def read(path: Path) -> str:
    """The text of a file of sysfs, stripped. Raises OSError."""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def gpus(root: Path) -> list[Path]:
    """The PCI devices of AMD's GPUs, by address; the server's own VGA chip is another vendor's."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            mine = read(device / "vendor") == _AMD and read(device / "class").startswith(_GPU_CLASSES)
        except OSError:
            continue
        if mine:
            found.append(device)
    return found


def smt(root: Path) -> str:
    """Whether two threads share a core."""
    return "on" if read(root / "sys/devices/system/cpu/smt/active") == "1" else "off"


def nps(root: Path) -> str:
    """NUMA nodes per socket: those that hold CPUs, by the packages that these belong to."""
    nodes: dict[str, set[str]] = {}
    for node in (root / "sys/devices/system/node").glob("node[0-9]*"):
        for cpu in node.glob("cpu[0-9]*"):
            package = read(root / "sys/devices/system/cpu" / cpu.name / "topology/physical_package_id")
            nodes.setdefault(package, set()).add(node.name)
    if not nodes:
        raise ValueError("no CPU belongs to a NUMA node")
    return " ".join(sorted({str(len(of)) for of in nodes.values()}))


def iommu(root: Path) -> str:
    """Whether the kernel found an IOMMU; ``iommu=pt`` does not hide it."""
    folder = root / "sys/class/iommu"
    return "on" if folder.is_dir() and any(folder.iterdir()) else "off"


def large_bar(root: Path) -> str:
    """Whether every GPU's memory is reached through one window above 4 GiB (Above 4G decoding)."""
    found = gpus(root)
    if not found:
        raise ValueError("no AMD GPU on the PCI bus")
    small = []
    for device in found:
        windows = [line.split() for line in read(device / "resource").splitlines()]
        sizes = [
            int(end, 16) - int(start, 16) + 1
            for start, end, *_ in windows
            if int(end, 16) and int(start, 16) >= 4 * GIB
        ]
        # An Instinct GPU has more than 32 GiB; without a large BAR it gets 256 MiB.
        if max(sizes, default=0) < 32 * GIB:
            small.append(device.name)
    return f"off on {', '.join(small)}" if small else "on"


def sriov(root: Path) -> str:
    """Whether the GPUs offer virtual functions, which they do when the firmware left room for them."""
    found = gpus(root)
    if not found:
        raise ValueError("no AMD GPU on the PCI bus")
    without = [device.name for device in found if not (device / "sriov_totalvfs").exists()]
    return f"off on {', '.join(without)}" if without else "on"


def boost(root: Path) -> str:
    """Whether cores may clock above their base frequency."""
    return "on" if read(root / "sys/devices/system/cpu/cpufreq/boost") == "1" else "off"


def aspm(root: Path) -> str:
    """The kernel's policy for PCIe link power states; ``performance`` keeps links awake."""
    policy = read(root / "sys/module/pcie_aspm/parameters/policy")
    return policy.partition("[")[2].partition("]")[0] or policy


READERS: dict[str, Callable[[Path], str]] = {
    "smt": smt,
    "nps": nps,
    "iommu": iommu,
    "large_bar": large_bar,
    "sriov": sriov,
    "boost": boost,
    "aspm": aspm,
}


def identity(root: Path) -> str:
    """Which board runs which firmware; empty parts where DMI says nothing."""
    parts = []
    for name in ("sys_vendor", "product_name", "bios_vendor", "bios_version", "bios_date"):
        try:
            parts.append(read(root / "sys/class/dmi/id" / name))
        except OSError:
            continue
    return ", ".join(part for part in parts if part) or "not shown by DMI"
