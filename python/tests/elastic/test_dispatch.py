"""Requests through engines that are well, die, hang and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from splitrail_elastic import dispatch
from splitrail_elastic.dispatch import Broken, Refused
from splitrail_elastic.pool import NoEngine
from tests.elastic.fakes import World

ANSWER = ["p0", "p1", "p2", "p3"]
SPLIT = {"prefill": 1, "decode": 2}


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, which must not hang."""
    asyncio.run(asyncio.wait_for(test, 10))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PROBE_S", 0.01)
    monkeypatch.setattr(dispatch, "SLOW_S", 0.02)
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.1)


def test_a_request_is_handed_from_prefill_to_decode() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            assert await world.ask() == ANSWER
            assert world.asked() == {"e0": 1, "e1": 1, "e2": 0}
            assert world.engines["e0"].asked[0]["kv_transfer_params"]["do_remote_decode"] is True
            assert world.engines["e1"].asked[0]["kv_transfer_params"]["remote_engine_id"] == "e0"
            assert world.counts == {"handed_off": 1}

    run(test())


def test_a_changed_ratio_holds_for_the_next_request_and_spares_the_one_that_runs() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            body = {"prompt": "p", "max_tokens": 4, "stream": True}
            running = world.dispatcher.answer("completions", body, "r")
            first = await anext(running)
            world.dispatcher.configure({"prefill": 2, "decode": 1})
            assert await world.ask("q") == ["q0", "q1", "q2", "q3"]
            assert [first, *[piece async for piece in running]] == ANSWER
            # e1 decoded the first and prefills now; e2 decodes alone.
            assert [world.pool.role(engine) for engine in world.pool.engines] == [
                "prefill",
                "prefill",
                "decode",
            ]
            assert len(world.engines["e2"].asked) == 1
            world.dispatcher.configure({})
            assert await world.ask() == ANSWER
            assert world.counts == {"handed_off": 2, "whole": 1}

    run(test())


def test_requests_go_to_the_least_busy_of_a_role() -> None:
    async def test() -> None:
        async with World(4, {"prefill": 2, "decode": 2}) as world:
            for _ in range(8):
                await world.ask()
            assert world.asked() == {"e0": 4, "e1": 4, "e2": 4, "e3": 4}
            # One is held up at e2; the next go past it.
            world.engines["e2"].hold.clear()
            held = asyncio.create_task(world.ask())
            while len(world.engines["e2"].asked) < 5:
                await asyncio.sleep(0)
            for _ in range(5):
                await world.ask()
            assert world.asked() == {"e0": 7, "e1": 7, "e2": 5, "e3": 9}
            world.engines["e2"].hold.set()
            assert await held == ANSWER
            assert all(engine.in_flight == 0 for engine in world.pool.engines)

    run(test())


@pytest.mark.parametrize("more", [{"n": 2}, {"prompt": ["a", "b"]}, {"max_tokens": 2}])
def test_what_cannot_or_need_not_move_is_served_by_a_prefill_engine(more: dict[str, Any]) -> None:
    async def test() -> None:
        async with World(3, {**SPLIT, "aggregated_below_osl": 2}) as world:
            await world.ask(**more)
            assert world.asked() == {"e0": 1, "e1": 0, "e2": 0}
            assert "kv_transfer_params" not in world.engines["e0"].asked[0]
            assert world.counts == {"whole": 1}

    run(test())


@pytest.mark.parametrize("victim", ["e0", "e1"])
@pytest.mark.parametrize("noticed", [False, True])
def test_an_engine_that_is_dead_costs_no_request(victim: str, noticed: bool) -> None:
    """Dead before the request: an error at once, or a wait for a replica that Serve has yet to start."""

    async def test() -> None:
        async with World(3, SPLIT, dead_s=0.05) as world:
            world.engines[victim].die(noticed)
            for _ in range(4):
                assert await world.ask() == ANSWER
            assert "failed" not in world.counts
            assert world.counts.get("whole", 0) + world.counts.get("handed_off", 0) == 4

    run(test())


def test_a_decode_engine_that_dies_before_the_first_token_is_tried_around() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e1"].dies_after = 0
            assert await world.ask() == ANSWER
            assert world.counts == {"retried": 1, "handed_off": 1}
            assert len(world.engines["e2"].asked) == 1

    run(test())


def test_a_prefill_engine_that_dies_after_its_work_loses_the_cache_and_not_the_request() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e1"].hold.clear()
            world.engines["e2"].hold.clear()
            asked = asyncio.create_task(world.ask())
            while not world.engines["e1"].asked:
                await asyncio.sleep(0)
            world.engines["e0"].die()
            # Its death ends the wait for its cache: nobody has to let e1 go on for that.
            while world.pool.engines[0].up:
                await asyncio.sleep(0)
            world.engines["e2"].hold.set()
            world.engines["e1"].hold.set()
            assert await asked == ANSWER
            assert world.counts == {"retried": 1, "whole": 1}

    run(test())


def test_without_decode_engines_prefill_engines_do_both_and_the_other_way_round() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e1"].die()
            world.engines["e2"].die()
            assert await world.ask() == ANSWER
            assert await world.ask() == ANSWER
            assert world.counts["whole"] == 2

            world.engines["e1"].alive.set()
            world.engines["e2"].alive.set()
            world.engines["e0"].die()
            while not (world.pool.engines[1].up and world.pool.engines[2].up):
                await asyncio.sleep(0.001)
            assert await world.ask() == ANSWER
            assert "failed" not in world.counts

    run(test())


def test_an_engine_that_comes_back_is_warmed_before_it_is_asked() -> None:
    async def test() -> None:
        async with World(2, {"prefill": 1, "decode": 1}) as world:
            engine = world.engines["e1"]
            engine.die()
            while world.pool.engines[1].up:
                await asyncio.sleep(0.001)
            engine.asked.clear()
            engine.alive.set()
            while not world.pool.engines[1].up:
                await asyncio.sleep(0.001)
            # A hand-off each way with the other engine.
            assert [bool(one["kv_transfer_params"].get("do_remote_decode")) for one in engine.asked] == [
                True,
                False,
            ]
            assert await world.ask() == ANSWER
            assert world.counts == {"handed_off": 1}

    run(test())


def test_a_stream_that_breaks_after_a_token_is_failed_and_not_begun_anew() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e1"].dies_after = 2
            got: list[Any] = []
            body = {"prompt": "p", "max_tokens": 4, "stream": True}
            with pytest.raises(Broken, match="e0 and e1: e1 died"):
                async for piece in world.dispatcher.answer("completions", body, "r"):
                    got.append(piece)
            assert got == ["p0", "p1"]
            assert world.counts == {"failed": 1}

    run(test())


def test_a_whole_answer_survives_the_death_of_its_engine() -> None:
    """Nothing is sent before it is there."""

    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e1"].hold.clear()
            asked = asyncio.create_task(world.ask(stream=False))
            while not world.engines["e1"].asked:
                await asyncio.sleep(0)
            world.engines["e1"].die()
            world.engines["e1"].hold.set()
            assert await asked == [{"text": " ".join(ANSWER)}]
            assert "failed" not in world.counts

    run(test())


def test_a_client_that_leaves_takes_its_request_back_from_the_engine() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            body = {"prompt": "p", "max_tokens": 4, "stream": True}
            pieces = world.dispatcher.answer("completions", body, "r")
            await anext(pieces)
            await pieces.aclose()
            assert world.engines["e1"].cancelled == 1
            assert all(engine.in_flight == 0 for engine in world.pool.engines)
            assert all(engine.up for engine in world.pool.engines)

            world.engines["e0"].hold.clear()
            waiting = asyncio.create_task(world.ask())
            while len(world.engines["e0"].asked) < 2:
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert world.engines["e0"].cancelled == 1
            assert world.counts == {"cancelled": 2}

    run(test())


def test_a_request_that_is_at_fault_is_not_tried_again() -> None:
    async def test() -> None:
        async with World(3, SPLIT) as world:
            world.engines["e0"].refuses = True
            with pytest.raises(Refused) as caught:
                await world.ask()
            assert (caught.value.status, caught.value.body) == (400, {"error": {"message": "too long"}})
            assert world.asked() == {"e0": 1, "e1": 0, "e2": 0}
            assert all(engine.up for engine in world.pool.engines)
            assert world.counts == {"refused": 1}

    run(test())


def test_without_an_engine_the_caller_is_told() -> None:
    async def test() -> None:
        async with World(2, {"prefill": 1, "decode": 1}) as world:
            for engine in world.engines.values():
                engine.die()
            with pytest.raises((NoEngine, Broken)):
                await world.ask()
            while not all(engine.gone.is_set() for engine in world.pool.engines):
                await asyncio.sleep(0.001)
            with pytest.raises(NoEngine):
                await world.ask()
            assert world.counts["failed"] == 2

    run(test())


def test_a_slow_engine_is_spared_and_not_given_up() -> None:
    async def test() -> None:
        async with World(3, SPLIT, dead_s=5.0) as world:
            world.engines["e1"].die(noticed=True)  # no answer, and no error
            while world.pool.engines[1].up:
                await asyncio.sleep(0.001)
            assert not world.pool.engines[1].gone.is_set()
            assert await world.ask() == ANSWER
            assert world.asked()["e1"] == 0
            world.engines["e1"].alive.set()
            while not world.pool.engines[1].up:
                await asyncio.sleep(0.001)

    run(test())


WITH_SPARE = {"prefill": 1, "decode": 2, "spare": 1}


def test_a_spare_engine_is_warm_and_gets_no_request_until_the_ratio_asks_for_it() -> None:
    async def test() -> None:
        async with World(4, WITH_SPARE) as world:
            spare = world.pool.engines[3]
            assert (world.pool.role(spare), spare.up, spare.last > 0) == ("spare", True, True)
            for _ in range(6):
                assert await world.ask() == ANSWER
            assert world.asked() == {"e0": 6, "e1": 3, "e2": 3, "e3": 0}
            world.dispatcher.configure({"prefill": 2, "decode": 2, "spare": 0})
            for _ in range(2):
                assert await world.ask() == ANSWER
            assert world.asked()["e3"] > 0

    run(test())


@pytest.mark.parametrize("dead", [0, 1])
def test_a_spare_engine_stands_in_for_a_dead_one_until_that_is_back(dead: int) -> None:
    async def test() -> None:
        async with World(4, WITH_SPARE) as world:
            died = world.engines[f"e{dead}"]
            died.die()
            while world.pool.engines[dead].up:
                await asyncio.sleep(0.001)
            for _ in range(4):
                assert await world.ask() == ANSWER
            # All of what a prefill engine gets, half of what one of two decode engines does.
            assert len(world.engines["e3"].asked) == {0: 4, 1: 2}[dead]
            assert world.counts == {"handed_off": 4}
            died.alive.set()
            while not world.pool.engines[dead].up:
                await asyncio.sleep(0.001)
            before = len(world.engines["e3"].asked)
            for _ in range(4):
                assert await world.ask() == ANSWER
            assert len(world.engines["e3"].asked) == before

    run(test())


def test_a_spare_engine_takes_the_role_that_nobody_has() -> None:
    async def test() -> None:
        async with World(5, {"prefill": 1, "decode": 3, "spare": 1}) as world:
            for number in (0, 1):
                world.engines[f"e{number}"].die()
            while any(world.pool.engines[number].up for number in (0, 1)):
                await asyncio.sleep(0.001)
            assert await world.ask() == ANSWER
            assert world.counts == {"handed_off": 1}
            assert world.engines["e4"].asked[0]["kv_transfer_params"]["do_remote_decode"] is True

    run(test())


def test_of_engines_that_do_both_a_spare_one_stands_in_too() -> None:
    async def test() -> None:
        async with World(3, {"spare": 1}) as world:
            for _ in range(4):
                await world.ask()
            assert world.asked() == {"e0": 2, "e1": 2, "e2": 0}
            world.engines["e0"].die()
            while world.pool.engines[0].up:
                await asyncio.sleep(0.001)
            for _ in range(4):
                assert await world.ask() == ANSWER
            assert world.asked()["e2"] == 2

    run(test())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"prefill": 1, "decode": 1}, "together they must be the 3 engines"),
        ({"prefill": 3, "decode": 0}, "each needs one at least"),
        ({"prefill": 4, "decode": -1}, "user_config.decode is -1"),
        ({"prefill": "1", "decode": 2}, "user_config.prefill is '1'"),
        ({"prefill": 1, "decode": 2, "spare": 1}, "2 decode and 1 spare: .* must be the 3 engines"),
        ({"spare": 3}, "user_config.spare is 3 of 3 engines: one must serve"),
        ({"prefil": 1, "decode": 2}, "user_config.prefil is unknown"),
    ],
)
def test_a_ratio_that_cannot_be_leaves_the_old_one(config: dict[str, Any], says: str) -> None:
    async def test() -> None:
        world = World(3, SPLIT)
        with pytest.raises(ValueError, match=says):
            world.dispatcher.configure(config)
        assert (world.pool.ratio.prefill, world.pool.ratio.decode) == (1, 2)

    run(test())
