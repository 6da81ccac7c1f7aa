"""Drain and undrain a node of the lab under a steady load of real requests, and count what fails.

usage: python python/benchmarks/drain_under_load.py [NODE]     by default lab-decode

The lab must stand and serve a topology whose engines any of its nodes takes, so that it fits one node less:

    splitrail up -i inventories/lab -e @python/benchmarks/drain_under_load.yml

Two clients send a streamed request of 16 tokens every second each (`safe_deploys.py`): while the node is
drained, while it is out, and while it is taken back. Prints a Markdown table: seconds, requests that ended
meanwhile, how many failed or were answered wrong, and the longest. Exit code 0 when none failed and none
was answered wrong.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from safe_deploys import PROMPTS, Load, ask, client, meanwhile, splitrail

VARIABLES = Path(__file__).with_suffix(".yml")
OUT_S = 30


def main() -> int:
    """Drain the node named on the command line, and have it back."""
    node = sys.argv[1] if len(sys.argv) > 1 else "lab-decode"
    own = ("-e", f"@{VARIABLES}")
    with client() as who:
        load = Load([ask(who, number) for number in range(PROMPTS)])
    steps = {
        f"drain {node}": lambda: splitrail("drain", node, *own),
        "it is out": lambda: time.sleep(OUT_S),
        f"undrain {node}": lambda: splitrail("undrain", node, *own),
    }
    return meanwhile(steps, load)


if __name__ == "__main__":
    sys.exit(main())
