"""What is going to be sent and when, decided beforehand and alike for every system under test."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil

from splitrail.plan import simulate
from splitrail.workload import Window, Workload

# Tokens a named block of a prompt has. Blocks of one name hold the same tokens, so that caches find them.
BLOCK = 64
# Prefixes that hits are spread over: one alone would hold a single engine's attention.
PREFIXES = 8
# Ids of ordinary tokens in every vocabulary of more than a thousand.
FIRST_TOKEN, LAST_TOKEN = 100, 999


@dataclass(frozen=True)
class Planned:
    """A request to be: seconds after the start, tokens of prompt and answer, and the names of its blocks."""

    at_s: float
    isl: int
    osl: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """Requests by rising time; a block has ``block`` tokens, the last one of a prompt what is left.

    ``salt`` sets the contents of all blocks: what two runs share is in no cache of the second.
    """

    requests: tuple[Planned, ...]
    block: int
    salt: int

    def shard(self, index: int, of: int) -> Traffic:
        """Every ``of``-th request, from ``index`` on."""
        return Traffic(self.requests[index::of], self.block, self.salt)


def draw(workload: Workload, qps: float, seconds: float, seed: int, *, even_from_s: float = 0.0) -> Traffic:
    """Draw ``seconds`` of traffic. One seed gives the same lengths, and the same gaps scaled by the rate.

    Up to ``even_from_s`` and after it there are exactly as many requests as the rate says: a search over
    rates should not find the luck of a drawing. The planner draws in the same way.
    """
    drawn = simulate.traffic(workload, qps, Window(seconds=seconds, drop_s=even_from_s), seed, even=True)
    longest = max((request.isl for request in drawn), default=1)
    shares = workload.hit_rate > 0
    block = BLOCK if shares else longest
    pick = random.Random(f"prefixes {seed}")  # noqa: S311  # no secret
    own = count(_prefix_blocks(longest, block) * PREFIXES)
    requests = []
    for request in drawn:
        size = ceil(request.isl / block)
        # Rounded, so that the mean share is right also where prompts are few blocks long.
        known = min(size - 1, round(request.isl * workload.hit_rate / block)) if shares else 0
        first = pick.randrange(PREFIXES) * _prefix_blocks(longest, block) if shares else 0
        blocks = (*range(first, first + known), *(next(own) for _ in range(size - known)))
        requests.append(Planned(request.arrival, request.isl, request.osl, blocks))
    return Traffic(tuple(requests), block, _salt())


def paced(requests: Sequence[Planned], block: int, qps: float | None) -> Traffic:
    """Recorded requests from their first on, at their own pace or with all gaps scaled to this mean rate."""
    begin, end = requests[0].at_s, requests[-1].at_s
    own = (len(requests) - 1) / (end - begin) if end > begin else 1.0
    factor = own / qps if qps else 1.0
    moved = (Planned((one.at_s - begin) * factor, one.isl, one.osl, one.blocks) for one in requests)
    return Traffic(tuple(moved), block, _salt())


def tokens(traffic: Traffic, request: Planned) -> list[int]:
    """Token ids of a prompt."""
    found: list[int] = []
    for name in request.blocks:
        size = min(traffic.block, request.isl - len(found))
        content = random.Random(f"{traffic.salt} {name}")  # noqa: S311  # no secret
        found += content.choices(range(FIRST_TOKEN, LAST_TOKEN + 1), k=size)
    return found


def warm_prefixes(traffic: Traffic) -> Iterator[Planned]:
    """The longest request of each prefix that others share, to be served before anything is measured."""
    longest: dict[int, Planned] = {}
    times: dict[int, int] = {}
    for request in traffic.requests:
        first = request.blocks[0]
        times[first] = times.get(first, 0) + 1
        if first not in longest or request.isl > longest[first].isl:
            longest[first] = request
    return (request for first, request in longest.items() if times[first] > 1)


def _prefix_blocks(longest: int, block: int) -> int:
    return ceil(longest / block)


def _salt() -> int:
    return random.SystemRandom().randrange(2**31)
