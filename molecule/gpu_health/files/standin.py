#!/usr/bin/python3
"""Stands for amd-smi, rocminfo, rvs, TransferBench and all_reduce_perf.

Prints what they print on a healthy server, spoilt as state.json says:
{"hang": [tool], "fail": {tool: code}, "replace": {tool: [[old, new, count]]}}.
"""

import json
import sys
import time
from pathlib import Path

HOME = Path("/var/lib/standin")
FILES = {
    "rocminfo": "rocminfo.txt",
    "rvs": "rvs-gst.txt",
    "TransferBench a2a": "transferbench-a2a.txt",
    "TransferBench p2p": "transferbench-p2p.txt",
    "all_reduce_perf": "rccl-all-reduce.txt",
}


def main() -> int:
    name = Path(sys.argv[0]).name
    tool = f"{name} {sys.argv[1]}" if name in {"amd-smi", "TransferBench"} else name
    if name == "amd-smi" and sys.argv[2:] != ["--json"]:
        sys.exit(f"the stand-in knows no {sys.argv}")
    file = FILES.get(tool, f"amd-smi-{sys.argv[1]}.json" if name == "amd-smi" else "")
    state = json.loads((HOME / "state.json").read_text()) if (HOME / "state.json").exists() else {}
    text = (HOME / "amd" / file).read_text()
    for old, new, count in state.get("replace", {}).get(tool, []):
        if old not in text:
            sys.exit(f"the stand-in finds no {old!r} in {file}")
        text = text.replace(old, new, count)
    sys.stdout.write(text)
    sys.stdout.flush()
    if tool in state.get("hang", []):
        time.sleep(600)
    return int(state.get("fail", {}).get(tool, 0))


if __name__ == "__main__":
    sys.exit(main())
