"""A host of two EPYC 9005 and eight MI325X as sysfs and procfs show it, in a folder: 8 CPUs stand for 256."""

from __future__ import annotations

from pathlib import Path

GIB = 1024**3
SLOTS = ("05", "26", "46", "65", "85", "a6", "c6", "e5")
GPUS = tuple(f"0000:{slot}:00.0" for slot in SLOTS)
BOOT_ID = "0f5a2c9e-6d3b-4c58-9a63-8d7f1b0c2e11"
LINUX = "BOOT_IMAGE=/boot/vmlinuz-6.8.0-60-generic root=/dev/nvme0n1p2 ro"
CPUS = 8


def put(root: Path, path: str, text: str | int) -> None:
    """Write a file, with the newline that the kernel adds."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n", encoding="utf-8")


def gpu(root: Path, bdf: str) -> None:
    """One MI325X on the bus: its memory in one window, its link at 32 GT/s."""
    device = f"sys/bus/pci/devices/{bdf}"
    base = 0x20000000000 + GPUS.index(bdf) * 0x10000000000
    put(root, f"{device}/vendor", "0x1002")
    put(root, f"{device}/device", "0x74a5")
    put(root, f"{device}/class", "0x120000")
    put(root, f"{device}/sriov_totalvfs", 8)
    windows = [(base, base + 256 * GIB - 1), (base + 0x8000000000, base + 0x8000000000 + 0x1FFFFF)]
    lines = [f"0x{start:016x} 0x{end:016x} 0x000000000014220c" for start, end in windows]
    put(root, f"{device}/resource", "\n".join([*lines, "0x0000000000000000 0x0000000000000000 0x0"]))
    for kind in ("current", "max"):
        put(root, f"{device}/{kind}_link_speed", "32.0 GT/s PCIe")
        put(root, f"{device}/{kind}_link_width", 16)
    driver = root / "sys/bus/pci/drivers/amdgpu"
    driver.mkdir(parents=True, exist_ok=True)
    (root / device / "driver").symlink_to(driver)


def tuned(root: Path) -> None:
    """The host with everything as it should be."""
    options = "pci=realloc=off pci=bfsort iommu=pt numa_balancing=disable"
    put(root, "proc/cmdline", f"{LINUX} {options}")
    put(root, "proc/sys/kernel/random/boot_id", BOOT_ID)
    put(root, "proc/sys/kernel/numa_balancing", 0)
    put(root, "proc/sys/net/ipv4/tcp_rmem", "4096\t87380\t16777216")
    put(root, "etc/default/grub", 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""')
    put(
        root, "etc/default/grub.d/90-splitrail.cfg", f'GRUB_CMDLINE_LINUX="${{GRUB_CMDLINE_LINUX}} {options}"'
    )
    entry = f"\tlinux\t/boot/vmlinuz-6.8.0-60-generic root=/dev/nvme0n1p2 ro {options}"
    menu = [f"menuentry '{name}' {{\n{entry}\n}}" for name in ("Ubuntu", "Ubuntu, older kernel")]
    menu.append("menuentry 'Memory test' {\n\tlinux\t/boot/memtest86+x64.bin\n}")
    put(root, "boot/grub/grub.cfg", "\n".join(menu))
    put(root, "usr/sbin/update-grub", "#!/bin/sh")
    for cpu in range(CPUS):
        for index, (name, latency) in enumerate((("POLL", 0), ("C1", 1), ("C2", 100))):
            state = f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state{index}"
            put(root, f"{state}/name", name)
            put(root, f"{state}/latency", latency)
            put(root, f"{state}/disable", int(name == "C2"))
        put(root, f"sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor", "performance")
        package = cpu * 2 // CPUS
        put(root, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", package)
        (root / f"sys/devices/system/node/node{package}/cpu{cpu}").mkdir(parents=True)
    put(root, "sys/devices/system/cpu/smt/active", 0)
    put(root, "sys/devices/system/cpu/cpufreq/boost", 1)
    put(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 512)
    put(root, "sys/module/pcie_aspm/parameters/policy", "default [performance] powersave powersupersave")
    (root / "sys/class/iommu/ivhd0").mkdir(parents=True)
    put(root, "sys/class/dmi/id/product_name", "GPU server")
    put(root, "sys/class/dmi/id/bios_version", "1.7a")
    (root / "dev/shm").mkdir(parents=True)
    # The server's own display, which is no GPU of the suite's.
    put(root, "sys/bus/pci/devices/0000:03:00.0/vendor", "0x1a03")
    put(root, "sys/bus/pci/devices/0000:03:00.0/class", "0x030000")
    for bdf in GPUS:
        gpu(root, bdf)
