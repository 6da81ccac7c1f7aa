"""Which pairs of nodes are measured at the same time: a round-robin tournament by the circle method."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[str, str]


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """Every pair once, in rounds in which no node is in two pairs.

    N nodes take N-1 rounds; an odd N takes N, and in each round another node rests. One node is held, the
    others move on around it; who comes first in a pair alternates, so that no node opens all of its pairs.

    Raises ValueError when a node is named twice.
    """
    if len(set(nodes)) != len(nodes):
        raise ValueError("a node is named twice")
    ring: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    made = []
    for number in range(len(ring) - 1):
        half = len(ring) // 2
        faced = zip(ring[:half], reversed(ring[half:]), strict=True)
        pairs = [(a, b) for a, b in faced if a is not None and b is not None]
        made.append([(b, a) if (number + place) % 2 else (a, b) for place, (a, b) in enumerate(pairs)])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return made


def sample(nodes: Sequence[str], degree: int) -> list[list[Pair]]:
    """The first ``degree`` rounds: every node with that many peers (one fewer where it rested).

    Two rounds that follow each other already join all nodes into one path, so no part of the fleet is left
    apart (three, where their number is odd).
    Raises ValueError when the degree is below 1.
    """
    if degree < 1:
        raise ValueError(f"a sample needs at least one peer a node, got {degree}")
    return rounds(nodes)[:degree]


def pairs_of(plan: Sequence[Sequence[Pair]]) -> set[frozenset[str]]:
    """The pairs of a plan, whoever comes first."""
    return {frozenset(pair) for made in plan for pair in made}
