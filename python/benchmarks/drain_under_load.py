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
import threading
import time
from pathlib import Path

from safe_deploys import CLIENTS, PROMPTS, Load, ask, client, say, splitrail

VARIABLES = Path(__file__).with_suffix(".yml")
OUT_S = 30


def main() -> int:
    """Drain the node named on the command line, and have it back."""
    node = sys.argv[1] if len(sys.argv) > 1 else "lab-decode"
    own = ("-e", f"@{VARIABLES}")
    with client() as who:
        load = Load([ask(who, number) for number in range(PROMPTS)])
    threads = [threading.Thread(target=load.send, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sys.stdout.write(
        "| what | s | requests | failed | wrong | longest s | |\n|---|---|---|---|---|---|---|\n"
    )
    steps = {
        f"drain {node}": lambda: splitrail("drain", node, *own),
        "it is out": lambda: time.sleep(OUT_S),
        f"undrain {node}": lambda: splitrail("undrain", node, *own),
    }
    try:
        for title, step in steps.items():
            began = time.monotonic()
            step()
            say(title, time.monotonic() - began, [one for one in load.ended if one[0] >= began], "")
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()
        say("in all", 0, load.ended, "")
    for text in sorted({what for _, _, what in load.ended if what not in {"", "wrong"}}):
        sys.stderr.write(f"{text}\n")
    return 1 if any(what for _, _, what in load.ended) else 0


if __name__ == "__main__":
    sys.exit(main())
