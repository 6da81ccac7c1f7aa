"""The load generator in this process, on a virtual clock against engines with known times, and over HTTP."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from splitrail.bench.engines import Endpoint, Route, Split
from splitrail.bench.http import Http
from splitrail.bench.measured import Measured, point
from splitrail.bench.mock import Mock, Transport, listen, virtual_clock, virtually
from splitrail.bench.queues import Queue
from splitrail.bench.search import Budget, Search
from splitrail.bench.steady import gate
from splitrail.bench.traffic import draw
from splitrail.workload import Lengths, Window, Workload, read_sla

FEW = Workload(isl=Lengths(mean=40), osl=Lengths(mean=4))
WINDOW = Window(seconds=110, drop_s=10)


def client(route: Route, *mocks: Mock) -> Http:
    """Reaches the mocks as http://m0, http://m1 and so on."""
    transport = Transport({f"m{number}": mock for number, mock in enumerate(mocks)})
    return Http(route, "m", transport=transport, clock=virtual_clock, run=virtually, drain_s=60)


def test_times_are_those_of_the_engine() -> None:
    run = client(Endpoint(["http://m0/v1"]), Mock(slots=100, prompt_s=0.5, token_s=0.1))(
        draw(FEW, 2.0, 120, 0)
    )
    found = point([run], 2.0, WINDOW)
    assert found.ttft["p50"] == pytest.approx(500)
    assert found.tpot["p99"] == pytest.approx(100)
    assert found.e2e["mean"] == pytest.approx(800)
    assert (found.failed, found.lag_ms) == (0, 0.0)


def test_arrivals_wait_for_nobody() -> None:
    run = client(Endpoint(["http://m0"]), Mock(slots=1, prompt_s=2.0))(draw(FEW, 2.0, 20, 0))
    assert run.lag_ms.max() == 0.0
    assert {"requests in flight"} <= {one.name for one in gate([run], Window(seconds=20)) if not one.ok}


def test_the_least_busy_engine_is_asked() -> None:
    mocks = [Mock(slots=1, prompt_s=1.0) for _ in range(4)]
    run = client(Endpoint([f"http://m{number}" for number in range(4)]), *mocks)(draw(FEW, 2.0, 100, 0))
    assert point([run], 2.0, Window(seconds=100, drop_s=5)).ttft["p50"] < 1100
    assert max(mock.seen["whole"] for mock in mocks) < 1.2 * min(mock.seen["whole"] for mock in mocks)


def test_a_split_hands_the_cache_on() -> None:
    prefill, decode = Mock(slots=8, prompt_s=0.5), Mock(slots=8, prompt_s=99.0, token_s=0.1)
    run = client(Split(["http://m0"], ["http://m1"]), prefill, decode)(draw(FEW, 1.0, 60, 0))
    assert set(prefill.seen) == {"prefill"}
    assert set(decode.seen) == {"decode"}
    assert point([run], 1.0, Window(seconds=60)).ttft["p50"] == pytest.approx(500)


def test_an_engine_that_hands_on_no_cache_is_named() -> None:
    class Plain(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"choices": [], "asked": str(request.url)})

    generator = Http(
        Split(["http://p"], ["http://d"]), "m", transport=Plain(), clock=virtual_clock, run=virtually
    )
    run = generator(draw(FEW, 1.0, 5, 0))
    assert not run.ok.any()
    assert "hands on no KV cache" in run.errors[0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b'data: {"choices":[{"text":"a"}],"usage":null}\n\n', "cut off"),
        (
            b'data: {"choices":[{}]}\n\ndata: {"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n',
            "1 tokens in",
        ),
    ],
)
def test_answers_that_are_none_are_failures(lines: bytes, said: str) -> None:
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert request.url.path == "/v1/completions"
            return httpx.Response(200, content=lines)

    generator = Http(Endpoint(["http://m0"]), "m", transport=Broken(), clock=virtual_clock, run=virtually)
    run = generator(draw(FEW, 1.0, 3, 0))
    assert not run.ok.any()
    assert said in run.errors[0]


def test_a_refusal_is_a_failure_with_its_words() -> None:
    run = client(Endpoint(["http://m0"]), Mock(fails=True))(draw(FEW, 1.0, 5, 0))
    assert "500: told to fail" in run.errors[0]


def test_what_is_not_through_in_time_has_failed() -> None:
    run = client(Endpoint(["http://m0"]), Mock(slots=1, prompt_s=40.0))(draw(FEW, 1.0, 10, 0))
    assert 0 < run.ok.sum() < len(run.ok)
    assert "not through" in run.errors[0]


def test_the_search_through_the_client_finds_what_the_engine_can() -> None:
    generator = client(Endpoint(["http://m0"]), Mock(slots=1, prompt_s=0.1))

    def measure(qps: float, window: Window, seconds: float, seed: int) -> Measured:
        one = Workload(isl=Lengths(mean=40), osl=Lengths(mean=1))
        return generator(draw(one, qps, seconds, seed, even_from_s=window.drop_s))

    budget = Budget(requests=600, repeats=2, tolerance=0.05, seconds=1e9)
    found = Search(measure, read_sla(["ttft_p90=350"]), budget).run(6.0)
    true = Queue(exponential=False, mean_s=0.1).sustainable(0.9, 0.35)
    assert found.qps == pytest.approx(true, rel=0.1)


def test_over_real_http() -> None:
    async def measured() -> Measured:
        async with listen(Mock(slots=16, prompt_s=0.05, token_s=0.01)) as url:
            return await Http(Endpoint([url]), "m", key="secret").offer(draw(FEW, 10.0, 3, 0))

    run = asyncio.run(measured())
    assert run.ok.all()
    assert 50 <= point([run], 10.0, Window(seconds=3)).ttft["p50"] < 500
