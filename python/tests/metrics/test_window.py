"""Windows: two readings of exporters as Ray 2.60.0 and vLLM 0.32.0 write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.metrics.text import MetricsError, read_engines
from splitrail.metrics.window import Replica, Snapshot, Window, pool_of, window
from tests.metrics.exporter import LATENCY, Engine, histogram

PREFILL, DECODE = Replica("Prefill:m", "n1", "llm"), Replica("Decode:m", "n2", "llm")


def snapshot(at: float, *, prefill: Engine, decode: Engine, extra: str = "") -> Snapshot:
    return Snapshot(at, {"n1": prefill.text(), "n2": decode.text() + extra}, {"p": PREFILL, "d": DECODE})


def engines(requests: int) -> tuple[Engine, Engine]:
    """A prefill and a decode engine after so many requests: prefill 0.3 s, hand-off 0.05 s, 30 ms a token."""
    prefill = Engine("p", counters={"prompt_tokens": 1000.0 * requests, "request_success": requests})
    prefill.seen = {
        "time_to_first_token_seconds": [0.3] * requests,
        "request_time_per_output_token_seconds": [0.0] * requests,
    }
    decode = Engine(
        "d",
        counters={
            "generation_tokens": 100.0 * requests,
            "external_prefix_cache_hits": 900.0 * requests,
            "prefix_cache_queries": 1000.0 * requests,
            "prefix_cache_hits": 250.0 * requests,
            "request_success": requests,
        },
        gauges={"num_requests_running": 3, "num_requests_waiting": 1, "kv_cache_usage_perc": 0.4},
    )
    decode.seen = {
        "time_to_first_token_seconds": [0.05] * requests,
        "request_time_per_output_token_seconds": [0.03] * requests,
    }
    decode.transfer(requests, size=3e6, descriptors=8, post_s=0.0004, seconds=0.006)
    return prefill, decode


@pytest.fixture
def ten() -> Window:
    """Ten requests in twenty seconds, after five that do not count."""
    (p1, d1), (p2, d2) = engines(5), engines(15)
    return window(snapshot(100, prefill=p1, decode=d1), snapshot(120, prefill=p2, decode=d2))


def test_pools_and_ratio(ten: Window) -> None:
    assert ten.pools == ["prefill", "decode"]
    assert ten.ratio == "1P1D"
    assert [engine.finished for engine in ten.engines] == [10, 10]


def test_rates_and_gauges(ten: Window) -> None:
    pools = ten.document()["pools"]
    assert pools["prefill"]["prompt_tokens_per_s"] == pytest.approx(500)
    assert pools["decode"]["generated_tokens_per_s"] == pytest.approx(50)
    assert (pools["decode"]["running"], pools["decode"]["waiting"], pools["decode"]["kv_use"]) == (3, 1, 0.4)
    assert pools["decode"]["hit_rate"] == pytest.approx(0.25)


def test_a_client_waits_for_prefill_and_hand_off(ten: Window) -> None:
    """Prefill 0.3 s lies in (0.25, 0.5], the hand-off 0.05 s in (0.04, 0.06]: the middles add up at p50."""
    assert ten.ttft_ms(50) == pytest.approx(375 + 50)


def test_prefill_engines_have_no_time_per_token(ten: Window) -> None:
    """Their single tokens count as 0 in vLLM's histogram, which would halve the median."""
    found = ten.tpot_ms(50)
    assert found is not None
    assert 25 < found <= 50


def test_transfers_are_known_between_bounds(ten: Window) -> None:
    kv = ten.transfers()
    assert kv.count == 10
    rate, size = kv.gb_per_s, kv.bytes_per_descriptor
    assert rate is not None
    assert size is not None
    # 3 MB in 6 ms is 0.5 GB/s, in 8 descriptors 375 kB each.
    assert rate.low <= 0.5 <= rate.high
    assert size.low <= 375e3 <= size.high
    assert not rate.exact


def test_known_bytes_of_a_token_narrow_the_rate() -> None:
    (p1, d1), (p2, d2) = engines(5), engines(15)
    pair = snapshot(100, prefill=p1, decode=d1), snapshot(120, prefill=p2, decode=d2)
    kv = window(*pair, bytes_per_token=3e6 / 900).transfers()
    assert kv.total_bytes.exact
    assert kv.total_bytes.low == pytest.approx(30e6)
    wrong = window(*pair, bytes_per_token=3e9).transfers()
    assert not wrong.total_bytes.exact, "bytes that contradict NIXL's own buckets were believed"


def test_vllm_servers_of_their_own_give_exact_sums() -> None:
    _, decode = engines(4)
    found = window(None, Snapshot(5.0, {"http://h:8000": decode.text(ray=False)}))
    rate = found.transfers().gb_per_s
    assert rate is not None
    assert rate.exact
    assert rate.low == pytest.approx(0.5)
    assert found.ratio == "1agg"


def test_replicas_that_are_gone_do_not_count() -> None:
    """Ray's exporter keeps the counters of dead workers."""
    prefill, decode = engines(3)
    gone = Engine("dead", counters={"request_success": 99.0}).text()
    found = window(None, snapshot(10, prefill=prefill, decode=decode, extra=gone))
    assert {engine.replica for engine in found.engines} == {"p", "d"}


def test_a_canary_is_told_apart() -> None:
    prefill, decode = engines(3)
    found = snapshot(10, prefill=prefill, decode=decode, extra=Engine("c", counters={"x": 1.0}).text())
    found.replicas["c"] = Replica("Decode:m", "n2", "llm-b")
    assert window(None, found).ratio == "llm 1P1D, llm-b 0P1D"
    assert window(None, found, application="llm-b").ratio == "0P1D"


def test_a_restarted_engine_counts_from_zero() -> None:
    (p1, d1), (p2, d2) = engines(15), engines(4)
    found = window(snapshot(100, prefill=p1, decode=d1), snapshot(120, prefill=p2, decode=d2))
    assert [engine.finished for engine in found.engines] == [4, 4]


def test_end_to_end_is_what_serves_proxy_saw() -> None:
    prefill, decode = engines(3)
    labels = 'route="/",application="llm",status_code="200"'
    proxy = "\n".join(
        [
            *histogram(
                "ray_serve_http_request_latency_ms",
                labels,
                [1000 * x for x in LATENCY],
                [900.0] * 4,
                middles=True,
            ),
            "# TYPE ray_serve_num_http_requests_total counter",
            f"ray_serve_num_http_requests_total{{{labels}}} 4",
            "# TYPE ray_serve_num_http_error_requests_total counter",
            'ray_serve_num_http_error_requests_total{application="llm",error_code="500"} 1',
            "",
        ]
    )
    found = window(None, snapshot(10, prefill=prefill, decode=decode, extra=proxy))
    assert found.e2e_ms(50) == pytest.approx(900)
    assert (found.requests, found.errors) == (4, 1)
    other = window(None, snapshot(10, prefill=prefill, decode=decode, extra=proxy), application="another")
    assert other.requests == 0


def test_a_text_that_is_none_is_refused_with_its_place() -> None:
    with pytest.raises(MetricsError, match="n1: not an exporter's text"):
        read_engines("vllm:x{a=} nonsense\n", "n1")


def test_pools_by_deployment() -> None:
    assert [
        pool_of(name) for name in ("Prefill:q", "Decode:q", "LLMServer:q", "Engine12:q", "ElasticIngress")
    ] == [
        *("prefill", "decode", "aggregated", "elastic", ""),
    ]


def test_a_real_page_of_ray_reads() -> None:
    """data/ray-2.60.0.txt: Ray 2.60.0's exporter after 7 requests to a deployment ``Decode:m``.

    The deployment observed a TTFT of 0.05 s and a transfer of 3 MB in 6 ms at each, with vLLM's names, labels
    and buckets; without Ray's other metrics and the labels otel_scope_*.
    """
    page = (Path(__file__).parent / "data/ray-2.60.0.txt").read_text()
    replicas = {"0foxtnvc": Replica("Decode:m", "192.0.2.2", "llm-a")}
    found = window(None, Snapshot(10, {"n": page}, replicas), application="llm-a", bytes_per_token=1.0)
    engine = found.engines[0]
    assert (engine.pool, engine.finished, engine.kv_use, engine.kv.count) == ("decode", 7, 0.25, 7)
    assert found.requests == 7
    assert found.ttft_ms(50) == pytest.approx(50)
    assert engine.kv.seconds.total is None, "a sum of Ray's, made of buckets' middles, was believed"
    assert _sum_of(page, "ray_vllm_nixl_xfer_time_seconds_sum") == pytest.approx(7 * 0.0075)
    assert engine.kv.seconds.sum().low <= 7 * 0.006 <= engine.kv.seconds.sum().high
    assert engine.kv.bytes.sum().low <= 7 * 3e6 <= engine.kv.bytes.sum().high


def _sum_of(page: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{"))
