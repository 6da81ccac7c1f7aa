"""Cut a VM node's power and see whether its RoCE state is back before Ray's unit may start.

usage: python python/benchmarks/fabric_reboot.py [--host fab-2]

Wants the lab of ``inventories/lab-fabric`` up and configured, as fabric_faults.py does. Ray's unit is the one
that the suite renders for ``inventories/mi325x``, with `sleep` in place of the container that it would run.
Twice the node loses its power: as it is, and with the tool taken away that sets PFC. Prints when, in seconds
of the boot's own clock, the state was back and Ray's process began. Exit code 0 when the first was before the
second, the node is as declared then (`splitrail fabric drift`), and without the tool Ray's unit never
started. The unit and the missing tool are put back, also after an interruption.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
import time
from pathlib import Path

from fabric_faults import DRIFT, INVENTORY, on, say, splitrail, verb

UNIT = "/etc/systemd/system/ray.service"
IN_ITS_PLACE = "[Service]\nExecStartPre=\nExecStart=\nExecStart=/usr/bin/sleep infinity\nExecStop=\n"
TOOL = "/usr/bin/mlnx_qos"
SETTLED_S = 180


def rendered_unit() -> str:
    """Ray's unit of a worker, as `splitrail render` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        splitrail("render", "-i", "inventories/mi325x", "--out", folder)
        return (Path(folder) / "mi325x-2" / UNIT.lstrip("/")).read_text(encoding="utf-8")


def write(host: str, path: str, text: str) -> None:
    """Write a file on a node."""
    code = base64.b64encode(text.encode()).decode()
    on(host, f"mkdir -p {Path(path).parent} && echo {code} | base64 -d > {path}")


def shown(host: str, unit: str, *keys: str) -> list[str]:
    """Properties of a unit, in the order asked for."""
    out = on(host, f"systemctl show {unit} {' '.join(f'-p {key}' for key in keys)}")
    found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return [found[key] for key in keys]


def settled(host: str) -> None:
    """Until the boot has no job left. Raises RuntimeError when that takes longer than ``SETTLED_S``."""
    before = time.monotonic()
    while on(host, "systemctl list-jobs --no-legend").strip():
        if time.monotonic() - before > SETTLED_S:
            raise RuntimeError(f"{host} still starts units {SETTLED_S} s after it could be reached")
        time.sleep(3)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="fab-2")
    host = parser.parse_args().host
    tool = on(host, "readlink -f $(command -v mlnx_qos)").strip() or TOOL
    try:
        write(host, UNIT, rendered_unit())
        write(host, f"{UNIT}.d/proof.conf", IN_ITS_PLACE)
        # What is not on the disk yet is lost with the power.
        on(host, "systemctl daemon-reload && systemctl enable ray.service && sync")
        splitrail("lab", "power", "-i", INVENTORY, "cycle", host)
        settled(host)
        (back,) = shown(host, "splitrail-roce.service", "ExecMainExitTimestampMonotonic")
        began, state = shown(host, "ray.service", "ExecMainStartTimestampMonotonic", "ActiveState")
        drift = verb(host, *DRIFT)
        good = 0 < int(back) < int(began) and state == "active" and drift.code == 0
        say("| boot | RoCE state back | Ray's process began | Ray's unit | drift |\n|---|---|---|---|---|")
        say(
            f"| as it is | {int(back) / 1e6:.3f} s | {int(began) / 1e6:.3f} s | {state} | "
            f"{'none' if drift.code == 0 else f'{len(drift.failed)} checks failed'} |"
        )

        on(host, f"mv {tool} {tool}.aside && sync")
        splitrail("lab", "power", "-i", INVENTORY, "cycle", host)
        settled(host)
        (roce,) = shown(host, "splitrail-roce.service", "ActiveState")
        began, state = shown(host, "ray.service", "ExecMainStartTimestampMonotonic", "ActiveState")
        refused = roce == "failed" and int(began) == 0 and state == "inactive"
        say(f"| without mlnx_qos | {roce} | {'never' if int(began) == 0 else began} | {state} | |")
    finally:
        on(host, f"test ! -e {tool}.aside || mv {tool}.aside {tool}")
        on(host, f"systemctl disable --now ray.service; rm -r {UNIT} {UNIT}.d; systemctl daemon-reload")
        on(host, "systemctl restart splitrail-roce.service")
    return 0 if good and refused else 1


if __name__ == "__main__":
    sys.exit(main())
