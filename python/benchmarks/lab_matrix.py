"""Measure prefill-decode against aggregated serving on the lab, interrupted once, and write the report.

usage: python python/benchmarks/lab_matrix.py [OUT] [RUNS]     default build/bench/lab_matrix, 3

The lab must stand and serve (`make lab`). Runs `splitrail bench matrix` on lab_matrix.yml beside this file,
stops it as by Ctrl-C amid a run once RUNS are on record (0: never), starts it again, and draws
OUT/report.html and OUT/figures with `splitrail report`. Prints a Markdown table of what was found. Exit code
0 when the interrupted matrix ended with 130, the second one with 0, no run was measured twice, and all cells
have a curve.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from splitrail.bench.matrix import load_plan
from splitrail.workload import Curve, load_curves

ROOT = Path(__file__).resolve().parents[2]
PLAN = Path(__file__).with_suffix(".yml")
SPLITRAIL = [sys.executable, "-m", "splitrail"]
# Into a run: Ansible has started the load generator, and that is still at it.
AMID_S = 12.0
INTERRUPTED = 130
HEADER = ("ISL/OSL", "served", "requests/s", "95 %", "ends with")
HEADER += ("TTFT p90", "TPOT p90", "E2E p90", "runs", "requests", "s")


def recorded(out: Path) -> list[dict[str, Any]]:
    """The runs on record."""
    path = out / "runs.jsonl"
    # After the last newline a line may be under way.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def matrix(out: Path, stop_after: int) -> int:
    """Run it, or until so many runs are on record; returns its exit code."""
    argv = [*SPLITRAIL, "bench", "matrix", str(PLAN), "-i", str(ROOT / "inventories/lab"), "-o", str(out)]
    with subprocess.Popen(argv, cwd=ROOT) as child:
        while stop_after and child.poll() is None:
            if len(recorded(out)) >= stop_after:
                time.sleep(AMID_S)
                child.send_signal(signal.SIGINT)
                break
            time.sleep(1)
        return child.wait()


def row(curve: Curve) -> str:
    """A curve as a line of the table."""
    (found,) = curve.sustained
    at = next((point for point in curve.points if point.qps == found.qps), None)
    figures = [f"{getattr(at, name)['p90']:.0f}" if at else "-" for name in ("ttft", "tpot", "e2e")]
    bounds = f"{found.low or 0:.3g} to {found.high:.3g}" if found.high else f"over {found.low or 0:.3g}"
    cells = [
        f"{curve.workload.isl.mean:g}/{curve.workload.osl.mean:g}",
        curve.layout,
        found.shown,
        bounds,
        found.binding or "-",
        *figures,
        str(found.runs),
        str(found.requests),
        f"{found.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure, interrupt, go on, report."""
    out = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else ROOT / "build/bench/lab_matrix"
    stop_after = int(sys.argv[2]) if len(sys.argv) > 2 else 3  # noqa: PLR2004  # the second argument
    began = time.monotonic()
    faults = []
    if stop_after:
        code = matrix(out, stop_after)
        faults += [] if code == INTERRUPTED else [f"interrupted it ended with {code}"]
    before = recorded(out)
    if code := matrix(out, 0):
        faults.append(f"it ended with {code}")
    after = recorded(out)
    took = time.monotonic() - began
    keys = [one["key"] for one in after]
    if after[: len(before)] != before or len(set(keys)) < len(keys):
        faults.append("a run was measured twice, or changed")
    plan, document = load_plan(PLAN), load_curves(out / "curves.json")
    if len(document.curves) < len(plan.topologies) * len(plan.workloads):
        faults.append("a cell has no curve")
    drawn = [
        "report",
        str(out / "curves.json"),
        "--out",
        str(out / "report.html"),
        "--png",
        str(out / "figures"),
    ]
    if code := subprocess.run([*SPLITRAIL, *drawn], cwd=ROOT, check=False).returncode:
        faults.append(f"the report ended with {code}")
    told = [
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
        *(row(curve) for curve in document.curves if curve.sustained),
        "",
        f"{len(after)} runs, {len(before)} of them before it was interrupted; {took / 60:.1f} min in all",
        *(faults or ["no run was measured twice"]),
    ]
    sys.stdout.write("\n".join(told) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
