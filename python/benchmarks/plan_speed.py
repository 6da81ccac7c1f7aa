"""How fast the planner is: one run, a whole search, and how both grow.

usage: python python/benchmarks/plan_speed.py

Prints Markdown: wall time, for single runs processor time too, and the load of the machine at the start,
which stretches wall time. The search is that of `splitrail plan` on all cores: aggregated and nine splits,
refined around the best, one workload, one SLA, one seed, start of the workers included.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.resources import files
from pathlib import Path

from splitrail.plan.advise import Question, Searcher, answer, layouts
from splitrail.plan.simulate import simulate, traffic
from splitrail.plan.system import Model, fleet, load_model
from splitrail.workload import Layout, Lengths, Window, Workload, read_sla

WORKLOAD = Workload(isl=Lengths(mean=8000), osl=Lengths(mean=1000))
SLA = read_sla(["ttft_p90=1500", "tpot_p90=25"])
# Requests a second an engine: busy, and not overloaded.
RATE = 0.6


def used() -> float:
    """Processor seconds of this process."""
    return time.process_time()


def timed_run(model: Model, layout: str, requests: int) -> tuple[float, float]:
    """Wall and processor seconds of one simulation, its traffic drawn beforehand."""
    shape = Layout.read(layout)
    engines = fleet(shape, model)
    qps = RATE * sum(pool.replicas for pool in shape.pools.values())
    drawn = traffic(WORKLOAD, qps, Window(seconds=1e9, requests=requests), 0)
    wall, spent = time.perf_counter(), used()
    simulate(engines, drawn)
    return time.perf_counter() - wall, used() - spent


def timed_search(model: Model, replicas: int) -> tuple[float, int, str]:
    """Wall seconds of a search, how many layouts it looked at, and what it said."""
    question = Question(model=model, workload=WORKLOAD, sla=SLA, gpus=replicas, tps=(1,))
    wall = time.perf_counter()
    with Searcher() as searcher:
        found = answer(question, searcher, seeds=1)
    wall = time.perf_counter() - wall
    if len(found.options) < len(layouts(question)):
        raise AssertionError("a layout was left out")
    best = found.recommended.layout.label if found.recommended else "none"
    return wall, len(found.options), best


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")


def main() -> int:
    """Measure and print."""
    model = load_model(Path(str(files("splitrail.plan") / "data" / "h200-qwen3-14b.model.json")))
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
    say("| run of 8000/1000 | requests | wall s | processor s |\n|---|---|---|---|")
    for layout in ("4agg", "2p2d", "32agg", "12p20d"):
        for requests in (1000, 10_000, 40_000) if layout == "32agg" else (10_000,):
            wall, spent = timed_run(model, layout, requests)
            say(f"| {layout} | {requests} | {wall:.2f} | {spent:.2f} |")
    say("\n| search over | layouts | wall s | recommended |\n|---|---|---|---|")
    for replicas in (4, 8, 16, 32, 64):
        wall, looked, best = timed_search(model, replicas)
        say(f"| {replicas} replicas | {looked} | {wall:.1f} | {best} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
