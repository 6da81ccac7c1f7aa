"""The simulator against arithmetic, queueing theory and conservation laws."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrail.plan.engine import Engine, Request
from splitrail.plan.simulate import Balancing, Fleet, SimulationError, _balancer, point, simulate, traffic
from splitrail.plan.step import Kind, Settings, Step, Transfer
from splitrail.workload import Lengths, Window, Workload
from tests.plan.conftest import SETTINGS, STEP, TRANSFER, aggregated, split, workload

PLENTY = Window(seconds=1e9, requests=20_000)


def alone(fleet: Fleet, isl: int, osl: int, cached: int = 0) -> Request:
    request = Request(0, 1.0, isl, osl, cached=cached)
    simulate(fleet, [request])
    return request


def decode_seconds(isl: int, steps: int) -> float:
    return sum(STEP.decode_base(1) + STEP.context_s * (isl + step) for step in range(steps))


def test_a_lone_request_takes_its_prompt_and_its_steps() -> None:
    request = alone(aggregated(), 8000, 100)
    assert request.first - 1 == pytest.approx(STEP.prompt_seconds(8000))
    assert request.last - request.first == pytest.approx(decode_seconds(8000, 99))


def test_a_long_prompt_is_chunked_by_the_token_budget() -> None:
    # 8192 tokens of 20000, 8192 more over those, the rest over both.
    wanted = sum(
        STEP.seconds(new, new * (before + new / 2), 0, 0)
        for before, new in ((0, 8192), (8192, 8192), (16384, 3616))
    )
    assert alone(aggregated(), 20_000, 2).first - 1 == pytest.approx(wanted)


def test_cached_tokens_are_not_computed_again() -> None:
    request = alone(aggregated(), 8000, 2, cached=6000)
    assert request.first - 1 == pytest.approx(STEP.seconds(2000, 2000 * 7000, 0, 0))


def test_of_engines_with_as_many_requests_each_gets_its_turn_or_any() -> None:
    engines = [Engine(aggregated().kinds["aggregated"]) for _ in range(3)]
    in_turn, at_random = (_balancer(name, 0) for name in ("least-outstanding", "least-outstanding-random"))
    assert [engines.index(in_turn(engines)) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    order = [engines.index(at_random(engines)) for _ in range(300)]
    assert min(order.count(number) for number in range(3)) > 70  # 100 but for chance
    assert order != sorted(order)
    engines[1].outstanding = 1
    for choose in (in_turn, at_random):
        assert {engines.index(choose(engines)) for _ in range(30)} == {0, 2}
    engines[0].outstanding = engines[2].outstanding = 2
    assert in_turn(engines) is at_random(engines) is engines[1]
    # Two that differ: of three with one that is less busy, one pair in three leaves it out.
    of_two = _balancer("two-choices", 0)
    assert 170 < sum(of_two(engines) is engines[1] for _ in range(300)) < 230
    assert of_two(engines[:1]) is engines[0]


@pytest.mark.parametrize(("asynchronous", "left_out"), [(False, 1), (True, 3)])
def test_a_kv_cache_is_seen_some_steps_after_it_has_come(asynchronous: bool, left_out: int) -> None:
    # Steps of 10 ms whatever is in them, and a cache that is there at once.
    step = Step(step_s=0.01, token_s=0.0)
    engine = SETTINGS.model_copy(update={"async_scheduling": asynchronous})
    at_once = Transfer(bytes_per_s=1e15, bytes_per_token=1.0)
    kinds = {
        "prefill": Kind(step, engine, prefill_only=True),
        "decode": Kind(step, engine, transfer=at_once),
    }
    fleet = Fleet(kinds, {"prefill": 1, "decode": 1})
    first, second = Request(0, 0.0, 100, 500), Request(1, 1.005, 100, 50)
    simulate(fleet, [first, second])
    # The prompt's step and one of the decode engine, which had nothing else to do.
    assert first.first == pytest.approx(0.02)
    # Its prompt, the rest of a step of the other request, the step during which the cache comes, those that
    # leave it out, and its own.
    assert second.first - 1.005 == pytest.approx(0.01 + 0.005 + 0.01 + 0.01 * left_out + 0.01, abs=1e-6)


def test_a_split_adds_handoff_posting_and_one_step() -> None:
    request = alone(split(), 8000, 100)
    posting = TRANSFER.post(500)
    assert posting > TRANSFER.wire(8000)
    step = STEP.decode_base(1) + STEP.context_s * 7999
    wanted = STEP.prompt_seconds(8000) + TRANSFER.handoff_s + posting + step
    assert request.first - 1 == pytest.approx(wanted)
    assert request.last - request.first == pytest.approx(decode_seconds(8000, 99))


def test_decoding_waits_for_a_prompt_in_the_same_engine_and_not_in_another() -> None:
    def second_token_gap(fleet: Fleet) -> float:
        one, other = Request(0, 0.0, 2000, 400), Request(1, 1.0, 8000, 2)
        simulate(fleet, [one, other])
        return (one.last - one.first) - decode_seconds(2000, 399)

    assert second_token_gap(aggregated()) > 0.3
    # Only what posting the transfer takes longer than the step it is posted in.
    gap = second_token_gap(split())
    assert 0 < gap - (TRANSFER.post(500) - STEP.decode_base(1)) < 0.05


def test_md1_queue_agrees_with_theory() -> None:
    # Single-token answers, one prompt a step: an M/D/1 queue. Pollaczek-Khinchine gives its mean wait.
    step = Step(step_s=0.0, token_s=1e-4)
    fleet = aggregated(1, step, SETTINGS.model_copy(update={"max_num_batched_tokens": 1000}))
    service, load = 0.1, 0.7
    run = simulate(fleet, traffic(workload(1000, 1), load / service, PLENTY, 1))
    wait = np.mean([request.first - request.arrival for request in run.requests]) - service
    assert wait == pytest.approx(service * load / (2 * (1 - load)), rel=0.06)
    assert run.pools["aggregated"].busy == pytest.approx(load, rel=0.03)


def test_processor_sharing_agrees_with_theory() -> None:
    # A step that costs the same a request, whatever the batch: decoding is processor sharing, whose mean
    # batch is r / (1 - r) whatever the distribution of answers.
    step = Step(step_s=0.0, token_s=0.0, sequence_s=1e-3)
    load = 0.6
    answers = Workload(isl=Lengths(mean=1), osl=Lengths(mean=400, cv=1.0))
    fleet = aggregated(1, step, SETTINGS.model_copy(update={"max_num_seqs": 8000}))
    run = simulate(fleet, traffic(answers, load / 0.4, PLENTY, 2))
    assert run.pools["aggregated"].batch == pytest.approx(load / (1 - load), rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.integers(1, 900), st.integers(1, 120), st.floats(0, 0.95), st.floats(0, 0.95)
        ),
        min_size=1,
        max_size=40,
    ),
    st.tuples(st.sampled_from(["aggregated", "split"]), st.integers(1, 3)),
    st.integers(1100, 6000),
    st.sampled_from([1, 4, 16]),
    st.tuples(st.sampled_from(get_args(Balancing)), st.booleans()),
)
def test_every_request_ends_once_and_the_cache_never_overflows(
    drawn: list[tuple[float, int, int, float, float]],
    pool: tuple[str, int],
    kv_tokens: int,
    seats: int,
    other: tuple[str, bool],
) -> None:
    (mode, replicas), (balancing, asynchronous) = pool, other
    engine_settings = Settings(
        max_num_batched_tokens=512,
        max_num_seqs=seats,
        block_size=16,
        kv_tokens=kv_tokens,
        async_scheduling=asynchronous,
    )
    fleet = (
        aggregated(replicas, settings=engine_settings)
        if mode == "aggregated"
        else split(replicas, replicas, settings=engine_settings)
    )
    fleet = Fleet(fleet.kinds, fleet.replicas, 0.01, balancing)  # type: ignore[arg-type]
    times = sorted(at for at, *_ in drawn)
    requests = [
        Request(index, at, isl, osl, cached=int(isl * hit), remote_cached=int(isl * there))
        for index, (at, (_, isl, osl, hit, there)) in enumerate(zip(times, drawn, strict=True))
    ]
    seen: list[Engine] = []
    with watching(seen):
        simulate(fleet, requests)
    for request in requests:
        assert request.arrival < request.first <= request.last
        assert (request.first == request.last) == (request.osl == 1)
    for engine in seen:
        assert engine.free == engine.kind.blocks
        assert (engine.decoding, engine.context, engine.outstanding) == (0, 0, 0)
        assert not engine.waiting and not engine.running and not engine.loading and not engine.arrived


class watching:
    """Keeps the engines of a simulation, and looks at their caches before every stretch."""

    def __init__(self, seen: list[Engine]) -> None:
        self.seen = seen

    def __enter__(self) -> None:
        self.plan = Engine._plan
        seen, plan = self.seen, self.plan

        def checked(engine: Engine, now: float) -> float | None:
            if engine not in seen:
                seen.append(engine)
            until = plan(engine, now)
            block = engine.block
            held = sum(
                -(-(request.stored + engine.steps + engine._count - request.since) // block)
                for request in engine.running
                if not request.blocks and request is not engine.partial
            )
            assert held <= engine.free, "decoding requests hold more blocks than there are"
            return until

        Engine._plan = checked  # type: ignore[method-assign,assignment]

    def __exit__(self, *_: object) -> None:
        Engine._plan = self.plan  # type: ignore[method-assign]


def test_a_full_cache_preempts_and_still_serves_all() -> None:
    tight = SETTINGS.model_copy(update={"kv_tokens": 20_000})
    run = simulate(aggregated(settings=tight), traffic(workload(2000, 1500), 2, Window(seconds=20), 0))
    assert run.pools["aggregated"].preempted > 0
    assert all(request.last > 0 for request in run.requests)


def test_a_request_that_fits_into_no_cache_is_refused() -> None:
    small = SETTINGS.model_copy(update={"kv_tokens": 4000})
    with pytest.raises(SimulationError, match="8512 tokens fits into no aggregated engine"):
        simulate(aggregated(settings=small), [Request(0, 0.0, 8000, 512)])


def test_a_budget_under_the_seats_is_refused() -> None:
    bad = SETTINGS.model_copy(update={"max_num_batched_tokens": 128})
    with pytest.raises(SimulationError, match="max_num_batched_tokens 128"):
        simulate(aggregated(settings=bad), [Request(0, 0.0, 100, 5)])


def test_a_hopeless_run_is_given_up() -> None:
    run = simulate(aggregated(), traffic(workload(), 50, Window(seconds=1000, requests=5000), 0), crowd=200)
    assert run.gave_up


def test_one_seed_is_one_drawing_at_any_rate() -> None:
    window = Window(seconds=1e9, requests=50)
    slow, fast = (traffic(workload(), qps, window, 7) for qps in (1, 2))
    assert [a.arrival / 2 for a in slow] == pytest.approx([b.arrival for b in fast])
    assert [a.arrival for a in traffic(workload(), 1, window, 8)] != [a.arrival for a in slow]


def test_skipping_steps_is_exact() -> None:
    """One request more changes when stretches are cut, and nothing else where it lands in another engine."""

    class OneByOne(Engine):
        def _room(self, now: float) -> int:
            return min(super()._room(now), 1)

    requests = [traffic(workload(500, 200), 8, Window(seconds=10), 3) for _ in range(2)]
    kind = Kind(STEP, SETTINGS)
    lasts = []
    for engine_class, served in zip((Engine, OneByOne), requests, strict=True):
        engine = engine_class(kind)
        pending = list(served)
        while pending or engine.until is not None:
            if pending and (engine.until is None or pending[0].arrival <= engine.until):
                request = pending.pop(0)
                engine.submit(request, request.arrival)
            elif engine.until is not None:
                engine.advance(engine.until)
        lasts.append([request.last for request in served])
    assert lasts[0] == pytest.approx(lasts[1], abs=1e-6)


def test_figures_count_only_the_window() -> None:
    window = Window(seconds=20, drop_s=10)
    run = simulate(aggregated(), traffic(workload(), 1, window, 0))
    found = point(run, 1, window)
    counted = [request for request in run.requests if request.arrival >= 10]
    assert found.requests == len(counted) < len(run.requests)
    times = sorted(1000 * (request.first - request.arrival) for request in counted)
    assert found.value("ttft_p50") == pytest.approx(float(np.percentile(times, 50)))
    assert found.value("e2e_p90") == pytest.approx(
        float(np.percentile([1000 * (r.last - r.arrival) for r in counted], 90))
    )


@pytest.mark.parametrize("qps", [0.3, 7.0, 41.5])
def test_an_even_drawing_has_the_rate_in_both_parts(qps: float) -> None:
    window = Window(seconds=300, drop_s=100)
    for seed in range(3):
        drawn = [request.arrival for request in traffic(workload(), qps, window, seed, even=True)]
        assert sum(at < 100 for at in drawn) == round(100 * qps)
        assert sum(at >= 100 for at in drawn) == round(200 * qps)
        assert drawn == sorted(drawn) and drawn[-1] <= 300
