"""Does the search find a rate that is known, and does it refuse where there is none?

usage: python python/benchmarks/bench_method.py [SEEDS] [REQUESTS]     default 20 seeds, 20000 requests a run

Systems are queues for which queueing theory gives the highest rate under an SLA percentile
(splitrail.bench.queues states formula and source); they are simulated, so that the check is of the method
and not of this machine. Each is searched with its own seeds. One of them is the client itself: the httpx
generator on a virtual clock against a mock endpoint. Then what gets slower by the second, and so never
settles, must end without a rate. Last, real HTTP on this machine, for a look. Prints Markdown; exit code 1
where fewer than 19 of 20 are within the goal (3 %), or a rate is reported where there is none.
"""

from __future__ import annotations

import asyncio
import sys
import time

from splitrail.bench.engines import Endpoint
from splitrail.bench.http import Http
from splitrail.bench.measured import Measured, point
from splitrail.bench.mock import Mock, Transport, listen, virtual_clock, virtually
from splitrail.bench.queues import Aging, Queue
from splitrail.bench.search import Budget, Measure, Search
from splitrail.bench.steady import gate
from splitrail.bench.traffic import draw
from splitrail.workload import Lengths, Window, Workload, read_sla

GOAL, OF_TWENTY = 0.03, 19
# Of the client on a virtual clock, where a request costs a millisecond: fewer requests, and less certainty.
CLIENT_GOAL = 0.05
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SYSTEMS = [
    ("M/M/1", Queue(), "e2e_p90=6000", 1),
    ("M/M/1", Queue(), "e2e_p50=2000", 1),
    ("M/D/1", Queue(exponential=False), "ttft_p90=3500", 1),
    ("M/M/8", Queue(servers=8), "ttft_p90=3000", 1),
    # Of a p99 one request in a hundred tells something.
    ("M/M/8", Queue(servers=8), "e2e_p99=6000", 4),
]
ONE = Workload(isl=Lengths(mean=40), osl=Lengths(mean=1))


def say(text: str) -> None:
    """A line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def search(measure: Measure, sla: str, seed: int, requests: int, repeats: int = 8) -> float | None:
    """The rate that the search reports."""
    budget = Budget(requests, repeats, 0.02, seconds=1e12, run_seconds=1e9, seed=1000 * seed)
    return Search(measure, read_sla([sla]), budget).run().qps


def row(
    name: str, sla: str, true: float, found: list[float | None], *, began: float, goal: float = GOAL
) -> bool:
    """Print a line of the table; whether enough were within the goal."""
    errors = [(one or 0.0) / true - 1 for one in found]
    good = sum(abs(error) <= goal for error in errors)
    mean = sum(errors) / len(errors)
    worst = max(errors, key=abs)
    say(
        f"| {name} | {sla} | {true:.4f} | {good} of {len(errors)} ({goal:.0%}) | {mean:+.2%} | "
        f"{worst:+.2%} | {time.monotonic() - began:.0f} |"
    )
    return good * 20 >= OF_TWENTY * len(errors)


def known(seeds: int, requests: int) -> bool:
    """Queues against theory."""
    say("| system | SLA | true rate | within | mean error | worst | s |\n|---|---|---|---|---|---|---|")
    ok = True
    for name, queue, sla, times in SYSTEMS:
        began = time.monotonic()
        limit = read_sla([sla]).limits[0]
        true = queue.sustainable(SHARES[limit.statistic], limit.ms / 1000)
        found = [search(queue, sla, seed, times * requests) for seed in range(seeds)]
        ok &= row(f"{name}, {times * requests} requests a run", sla, true, found, began=began)
    return ok


def client(seeds: int) -> bool:
    """The generator itself, on a virtual clock."""
    began = time.monotonic()
    transport = Transport({"mock": Mock(slots=1, prompt_s=0.1)})
    generator = Http(Endpoint(["http://mock"]), "m", transport=transport, clock=virtual_clock, run=virtually)

    def measure(qps: float, window: Window, seconds: float, seed: int) -> Measured:
        return generator(draw(ONE, qps, seconds, seed, even_from_s=window.drop_s))

    true = Queue(exponential=False, mean_s=0.1).sustainable(0.9, 0.25)
    found = [search(measure, "ttft_p90=250", seed, 3000, 6) for seed in range(seeds)]
    return row(
        "M/D/1 through the HTTP client, virtual time",
        "ttft_p90=250",
        true,
        found,
        began=began,
        goal=CLIENT_GOAL,
    )


def unsettled(seeds: int) -> bool:
    """What gets slower and slower."""
    ok = True
    for slower in (0.001, 0.003, 0.01, 0.03):
        found = []
        for seed in range(seeds):
            budget = Budget(requests=300, repeats=4, seconds=1e12, seed=1000 * seed)
            found.append(Search(Aging(slower), read_sla(["e2e_p90=1000000"]), budget).run().qps)
        none = found.count(None)
        say(f"services slower by {slower:.1%} a second: no rate reported in {none} of {len(found)} seeds")
        ok &= none == len(found)
    return ok


def real() -> None:
    """Real HTTP on this machine, for a look at the client's own delays; no pass or fail."""

    async def measured(qps: float) -> Measured:
        async with listen(Mock(slots=64, prompt_s=0.05, token_s=0.01)) as url:
            work = Workload(isl=Lengths(mean=1000), osl=Lengths(mean=32))
            return await Http(Endpoint([url]), "m").offer(draw(work, qps, 12, 0))

    for qps in (10.0, 40.0):
        run, window = asyncio.run(measured(qps)), Window(seconds=10, drop_s=2)
        found = point([run], qps, window)
        broken = "; ".join(str(one) for one in gate([run], window) if not one.ok) or "steady"
        say(
            f"real HTTP at {qps:g}/s: TTFT p50 {found.ttft['p50']:.1f} ms (engine: 50), TPOT p50 "
            f"{found.tpot['p50']:.2f} ms (engine: 10), lag p99 {found.lag_ms} ms; {broken}"
        )


def main() -> int:
    """Run all."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 20000  # noqa: PLR2004  # the second argument
    ok = known(seeds, requests)
    ok &= client(max(1, seeds // 4))
    say("")
    ok &= unsettled(max(1, seeds // 4))
    real()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
