"""The tournament: every pair once, nobody twice in a round, as few rounds as there can be."""

from __future__ import annotations

from collections import Counter

import pytest

from splitrail.fabric.schedule import pairs_of, rounds, sample


def names(count: int) -> list[str]:
    return [f"n{number:03}" for number in range(count)]


@pytest.mark.parametrize("count", [*range(2, 34), 64, 255, 256])
def test_every_pair_meets_once_and_no_node_is_in_two_pairs_of_a_round(count: int) -> None:
    made = rounds(names(count))
    assert len(made) == (count - 1 if count % 2 == 0 else count)
    met = Counter(frozenset(pair) for pairs in made for pair in pairs)
    assert set(met.values()) == {1}
    assert len(met) == count * (count - 1) // 2
    for pairs in made:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy)) == count - count % 2


def test_no_node_comes_first_in_all_of_its_pairs() -> None:
    first = Counter(pair[0] for pairs in rounds(names(16)) for pair in pairs)
    assert max(first.values()) < 15
    assert min(first.values()) > 0


def test_nothing_to_schedule() -> None:
    assert rounds([]) == []
    assert rounds(["a"]) == [[]]
    with pytest.raises(ValueError, match="twice"):
        rounds(["a", "b", "a"])


@pytest.mark.parametrize("count", [4, 16, 64])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_a_sample_gives_every_node_as_many_peers(count: int, degree: int) -> None:
    degree = min(degree, count - 1)
    peers = Counter(node for pair in pairs_of(sample(names(count), degree)) for node in pair)
    assert set(peers.values()) == {degree}
    assert len(peers) == count


@pytest.mark.parametrize("count", [4, 7, 16, 64, 101])
def test_two_rounds_reach_the_whole_fleet(count: int) -> None:
    edges = pairs_of(sample(names(count), 3 if count % 2 else 2))
    reached, fresh = {"n000"}, {"n000"}
    while fresh:
        fresh = {node for edge in edges if edge & fresh for node in edge} - reached
        reached |= fresh
    assert len(reached) == count


def test_a_sample_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one peer"):
        sample(names(4), 0)
