"""Stand-in for mlnx_qos: trust and PFC of an interface, which a boot loses."""

from __future__ import annotations

import sys
from optparse import OptionParser  # as the real one: it takes `--pfc=...` and `--pfc ...`
from pathlib import Path
from typing import Any

from splitrail.lab.standins import standin

FRESH = {"trust": "pcp", "pfc": [0, 0, 0, 0, 0, 0, 0, 0]}


def show(now: dict[str, Any]) -> None:
    """Print the state of an interface."""
    print("DCBX mode: OS controlled")
    print(f"Priority trust state: {now['trust']}")
    if now["trust"] == "dscp":
        print("dscp2prio mapping:")
        for priority in range(8):
            dscps = "".join(f"{8 * priority + low:02d}," for low in range(7, -1, -1))
            print(f"\tprio:{priority} dscp:{dscps}")
    print("default priority:")
    print("Receive buffer size (bytes): 20016,156096,0,0,0,0,0,0,total_size=1027728")
    print("Cable len: 7\nPFC configuration:")
    print("\tpriority    0   1   2   3   4   5   6   7")
    print("\tenabled     " + "".join(f"{on}   " for on in now["pfc"]))
    print("\tbuffer      " + "".join(f"{on}   " for on in now["pfc"]))
    for traffic_class, priority in enumerate((1, 0, 2, 3, 4, 5, 6, 7)):
        print(f"tc: {traffic_class} ratelimit: unlimited, tsa: vendor\n\t priority:  {priority}")


def main(arguments: list[str]) -> int:  # noqa: PLR0911  # one a complaint
    """The exit code."""
    parser = OptionParser(usage="%prog -i <interface> [options]", version="%prog 1.2")
    parser.add_option("-i", "--interface", dest="interface")
    parser.add_option("-f", "--pfc", dest="pfc", metavar="LIST")
    parser.add_option("--trust", dest="trust")
    options, rest = parser.parse_args(arguments)
    if rest:
        print("Bad arguments")
        return 1
    if options.interface is None:
        print("Interface name is required")
        return 1
    netdev = Path(standin.config()["sysfs"]) / "class/net" / options.interface
    if standin.pci_of(netdev) not in standin.cards():
        # What the real one says of a NIC without DCB.
        print("Priority trust state is not supported on your system")
        print("Buffers commands are not supported on your system")
        print("Rate limit is not supported on your system!")
        print("ETS features are not supported on your system")
        return 1
    with standin.memory("mlnx_qos") as (state, booted):
        if booted:
            state.clear()
        now = state.setdefault(options.interface, {"trust": FRESH["trust"], "pfc": list(FRESH["pfc"])})
        if options.pfc is not None:
            values = options.pfc.split(",")
            if any(value not in {"0", "1"} for value in values):
                print(f"Bad value for PFC: {options.pfc}")
                return 1
            if len(values) != len(FRESH["pfc"]):
                print(
                    "pfc list must have 8 items"
                    if len(values) < len(FRESH["pfc"])
                    else "Too many items for PFC"
                )
                return 1
            now["pfc"] = [int(value) for value in values]
        if options.trust is not None:
            if options.trust not in {"pcp", "dscp"}:
                print("Invalid trust state command. Refer to the help.")
                return 1
            now["trust"] = options.trust
        show(now)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
