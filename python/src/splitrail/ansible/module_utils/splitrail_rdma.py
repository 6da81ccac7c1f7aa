"""RDMA devices and their counters as the kernel shows them.

Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

from pathlib import Path

# Ethernet adapters have one RDMA device a port, and that port is its first.
PORT = "1"


def device_of(netdev: str, root: Path = Path("/")) -> str:
    """The RDMA device of a network interface, or "".

    Found by the GID table, which names the interface of each entry. That holds for every kind of device,
    soft-RoCE too, and for every name that a device may have been given.
    """
    for device in sorted((root / "sys/class/infiniband").glob("*")):
        for entry in sorted((device / "ports" / PORT / "gid_attrs/ndevs").glob("*")):
            try:
                if entry.read_text(encoding="utf-8").strip() == netdev:
                    return device.name
            except OSError:
                continue  # an empty entry of the table cannot be read
    return ""
