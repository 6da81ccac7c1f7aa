#!/usr/bin/python3
"""Makes a PCI bus with eight MI325X in a folder, as sysfs shows it, to be mounted over the node's own."""

import sys
from pathlib import Path

root = Path(sys.argv[1])
driver = root / "driver/amdgpu"
driver.mkdir(parents=True)
(root / "module/amdgpu").mkdir(parents=True)
for slot in ("05", "26", "46", "65", "85", "a6", "c6", "e5"):
    device = root / f"pci/0000:{slot}:00.0"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    for name, text in {
        "vendor": "0x1002",
        "device": "0x74a5",
        "class": "0x120000",
        "current_link_speed": "32.0 GT/s PCIe",
        "current_link_width": "16",
        "current_compute_partition": "SPX",
        "current_memory_partition": "NPS1",
    }.items():
        (device / name).write_text(f"{text}\n")
