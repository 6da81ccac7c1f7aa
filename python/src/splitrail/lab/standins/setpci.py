"""Stand-in for setpci, for the two registers that roce_nic sets: a boot leaves them as a BIOS does.

On a machine with PCI devices of its own it stands in for one register only, which emulated devices do not
keep; all else is left to the real program.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from splitrail.lab.standins import standin

REAL = "/usr/bin/setpci"
# Register: what a boot leaves there, and which devices have it: all, or bridges only.
REGISTERS = {
    "CAP_EXP+8.w": (0x2936, "", "Capability 0010"),
    "ECAP_ACS+6.w": (0x001D, "0x0604", "Extended capability 000d"),
}


def main(arguments: list[str]) -> int:  # noqa: PLR0911  # one a complaint
    """The exit code."""
    if len(arguments) != 3 or arguments[0] != "-s":  # noqa: PLR2004
        print("Usage: setpci [<options>] (<device>+ <reg>[=<values>]*)*", file=sys.stderr)
        return 1
    slot, (register, _, given) = arguments[1], arguments[2].partition("=")
    if standin.config()["sysfs"] == "/sys" and register != "CAP_EXP+8.w" and Path(REAL).exists():
        return subprocess.run([REAL, *arguments], check=False).returncode
    device = Path(standin.config()["sysfs"]) / "bus/pci/devices" / slot
    if not device.exists():
        print('setpci: Warning: No devices selected for "' + register + '".', file=sys.stderr)
        return 0
    if register not in REGISTERS:
        print(f"setpci: Unable to parse register {register}", file=sys.stderr)
        return 1
    fresh, kind, capability = REGISTERS[register]
    if not (device / "class").read_text(encoding="ascii").startswith(kind):
        print(
            f"setpci: {slot}: Instance #0 of {capability} not found - "
            "there are no capabilities with that id.",
            file=sys.stderr,
        )
        return 1
    with standin.memory("setpci") as (state, booted):
        if booted:
            state.clear()
        now = state.get(f"{slot} {register}", fresh)
        if not given:
            print(f"{now:04x}")
            return 0
        match = re.fullmatch(r"([0-9a-f]{1,4})(?::([0-9a-f]{1,4}))?", given)
        if match is None:
            print(f"setpci: Invalid value: {given}", file=sys.stderr)
            return 1
        value, mask = int(match[1], 16), int(match[2] or "ffff", 16)
        state[f"{slot} {register}"] = (now & ~mask) | (value & mask)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
