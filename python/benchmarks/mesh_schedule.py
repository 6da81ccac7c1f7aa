"""Rounds and wall clock of a mesh by fleet size, against walking the pairs.

usage: python python/benchmarks/mesh_schedule.py [SECONDS]     default 5: a pair and rail

The real driver measures a fleet of local processes that speak as agents do and answer at once: what is left
is what the driver costs in each round. The time for the look at the wiring and for the links is then added:
every round takes SECONDS, because all pairs of a round and all rails of a pair run side by side. A run whose
links really take a while checks that sum. SSH costs a few round trips more than local processes do; that is
not in it.
"""

from __future__ import annotations

import statistics
import sys

from rich.console import Console
from rich.table import Table

from splitrail.fabric.mesh import WIRING_S
from splitrail.fabric.schedule import rounds
from splitrail.fabric.simulate import least_s, simulate, walked_s

RAILS = 8
SIZES = (2, 4, 16, 64, 256)
MEASURED_ROUNDS = 10  # of the largest fleets; rounds are alike
CHECKED = (16, 0.5)  # nodes and seconds a pair of the run with real time
GOAL = (64, 15 * 60.0)


def clock(seconds: float) -> str:
    """Seconds for people."""
    if seconds >= 7200:  # noqa: PLR2004
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"  # noqa: PLR2004


def main() -> int:
    """Print the table; 1 when the goal is missed."""
    link_s = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    console = Console(width=130)
    table = Table("nodes", "pairs", "rounds", "start", "driver a round", "mesh", "walking", "times faster")
    code = 0
    for count in SIZES:
        number = len(rounds([str(n) for n in range(count)]))
        timing = simulate(count, RAILS, 0.0, only_rounds=min(MEASURED_ROUNDS, number))
        failed = [reading for reading in timing.result.readings if reading.gbps is None]
        if failed:
            raise SystemExit(
                f"{count} nodes: {len(failed)} ways failed: {failed[0].error or failed[0].skipped}"
            )
        driver = statistics.median(timing.rounds_s)
        mesh = timing.started_s + WIRING_S + number * driver + least_s(count, link_s)
        walked = walked_s(count, RAILS, link_s)
        table.add_row(str(count), str(count * (count - 1) // 2), str(number), clock(timing.started_s),
                      f"{driver:.2f} s", clock(mesh), clock(walked), f"{walked / mesh:.0f}")  # fmt: skip
        if count == GOAL[0] and mesh > GOAL[1]:
            code = 1
    console.print(table)
    count, seconds = CHECKED
    timing = simulate(count, RAILS, seconds)
    took, least = sum(timing.rounds_s), least_s(count, seconds)
    driver = (took - least) / len(timing.rounds_s)
    console.print(
        f"check: {count} nodes x {RAILS} rails, links of {seconds} s: {len(timing.rounds_s)} rounds in "
        f"{took:.1f} s, {least:.1f} s of it the links, {driver:.2f} s a round the driver"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
