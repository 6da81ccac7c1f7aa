"""Stand-in for cma_roce_tos: the type of service of connections made by RDMA CM; a boot loses it."""

from __future__ import annotations

import getopt
import sys
from pathlib import Path

from splitrail.lab.standins import standin


def main(arguments: list[str]) -> int:
    """The exit code."""
    options = dict(getopt.getopt(arguments, "d:t:hp:")[0])
    device, port, tos = options.get("-d", "mlx5_0"), options.get("-p", "1"), int(options.get("-t", "-1"))
    if not standin.permitted():
        print("You must be root to run this")
        return 1
    if not (Path(standin.config()["sysfs"]) / "class/infiniband" / device).exists():
        print(f"Failed to create configuration for {device}")
        return 1
    if port != "1":
        print(f"Device {device} port {port} does not exist")
        return 1
    with standin.memory("cma_roce_tos") as (state, booted):
        if booted:
            state.clear()
        if tos >= 0:
            state[device] = tos
        print(state.get(device, 0))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
