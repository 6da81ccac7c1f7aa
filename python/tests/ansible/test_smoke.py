"""The parts of the smoke proof that need no cluster: sizes, counters, judgements, and reading a stream."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Json = dict[str, Any]
PROGRAM = Path(__file__).parents[3] / "roles/llm_serve/files/smoke.py"
# As Ray exports it on a decode node; the other model's counters must not count.
METRICS = """\
# HELP ray_vllm_external_prefix_cache_hits_total External prefix cache hits
# TYPE ray_vllm_external_prefix_cache_hits_total counter
ray_vllm_external_prefix_cache_hits_total{engine="0",model_name="m",WorkerId="a"} 512.0
ray_vllm_external_prefix_cache_hits_total{engine="0",model_name="m",WorkerId="b"} 128.0
ray_vllm_external_prefix_cache_hits_total{engine="0",model_name="other",WorkerId="c"} 4096.0
ray_vllm_nixl_bytes_transferred_bucket{engine="0",le="2097152.0",model_name="m"} 1.0
ray_vllm_nixl_bytes_transferred_bucket{engine="0",le="8388608.0",model_name="m"} 3.0
ray_vllm_nixl_bytes_transferred_bucket{engine="0",le="+Inf",model_name="m"} 4.0
ray_object_store_memory{Location="WORKER_HEAP"} 7.0
"""


def load(path: Path) -> ModuleType:
    """Import a program that lies outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


smoke = load(PROGRAM)


def model(**text: Any) -> SimpleNamespace:
    """A model's configuration as transformers gives it."""
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text))


GQA = {"num_hidden_layers": 94, "num_key_value_heads": 4, "num_attention_heads": 64, "hidden_size": 4096}
MLA = {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize(
    ("text", "cache", "dtype", "ranks", "size"),
    [
        # Qwen3-235B: 2 x 94 layers x 4 heads x 128 x 2 bytes.
        ({**GQA, "head_dim": 128}, "auto", "bfloat16", 1, 192512),
        ({**GQA, "head_dim": 128}, "auto", "bfloat16", 4, 192512),
        ({**GQA, "head_dim": 128}, "fp8", "bfloat16", 1, 96256),
        ({**GQA, "head_dim": 128}, "fp8_e4m3", "float32", 1, 96256),
        ({**GQA, "head_dim": 128}, "auto", "float32", 1, 385024),
        ({**GQA, "head_dim": 128}, "auto", "float", 1, 385024),
        # Eight ranks and four heads: each head is there twice.
        ({**GQA, "head_dim": 128}, "auto", "bfloat16", 8, 385024),
        # No head size given: 4096 / 64.
        (GQA, "auto", "bfloat16", 1, 96256),
        ({**GQA, "head_dim": None}, "auto", "bfloat16", 1, 96256),
        # DeepSeek-V3: one latent of 512 and a rotary key of 64 a layer, the same on each rank.
        (MLA, "auto", "bfloat16", 1, 70272),
        (MLA, "auto", "bfloat16", 8, 562176),
        (MLA, "fp8", "bfloat16", 8, 281088),
    ],
)
def test_kv_bytes_of_a_token(text: Json, cache: str, dtype: str, ranks: int, size: int) -> None:
    assert smoke.kv_bytes_per_token(model(**text), cache, dtype, ranks) == size


def failed(checks: list[Json]) -> list[str]:
    """Names of the checks that are not ok; each of them must bring a cure."""
    assert all(one["hint"] for one in checks)
    return [one["name"] for one in checks if not one["ok"]]


def counters(tokens: float = 0, small: float = 0, large: float = 0, bad: float = 0) -> Json:
    """Counters after so many tokens and transfers below and above 8 MiB."""
    bucket = smoke.NIXL_BYTES_BUCKET
    return {
        smoke.TOKENS_FROM_REMOTE: tokens,
        f"{bucket}:{8388608:g}": small,
        f"{bucket}:inf": small + large,
        smoke.NIXL_FAILED: bad,
    }


@pytest.mark.parametrize(
    ("before", "after", "ranks", "names"),
    [
        (counters(), counters(1000, 0, 1), 1, []),
        (counters(50, 3, 4, 1), counters(1050, 3, 5, 1), 1, []),
        ({}, counters(1000, 0, 1), 1, []),
        (counters(), counters(984, 0, 1), 1, []),
        (counters(), counters(983, 0, 1), 1, ["smoke.kv_tokens"]),
        (counters(1000, 0, 1), counters(1000, 0, 1), 1, ["smoke.kv_tokens", "smoke.kv_bytes"]),
        (counters(), counters(1000, 1, 0), 1, ["smoke.kv_bytes"]),
        (counters(), counters(1000, 0, 1, 1), 1, ["smoke.kv_failures"]),
        ({}, {}, 1, ["smoke.kv_tokens", "smoke.kv_bytes"]),
        # With two ranks each fetches half, and both must.
        (counters(), counters(1000, 0, 2), 2, []),
        (counters(), counters(1000, 1, 1), 2, ["smoke.kv_bytes"]),
    ],
)
def test_counters_prove_that_the_cache_moved(before: Json, after: Json, ranks: int, names: list[str]) -> None:
    expected = ranks * 9_000_000
    sizes = {"prompt_tokens": 1000, "expected": expected, "ranks": ranks, "block": 16}
    assert failed(smoke.kv_checks(before, after, **sizes)) == names


def test_a_ranks_share_decides_the_bucket() -> None:
    """Nine megabytes over eight ranks are transfers of about one, which no bound of 8 MiB will ever see."""
    sizes = {"prompt_tokens": 1, "expected": 9_000_000, "ranks": 8, "block": 16}
    bucket = smoke.NIXL_BYTES_BUCKET
    after = {smoke.TOKENS_FROM_REMOTE: 1, f"{bucket}:{8388608:g}": 8, f"{bucket}:inf": 8}
    assert failed(smoke.kv_checks({}, after, **sizes)) == []


@pytest.mark.parametrize(
    ("transport", "net", "rdma", "ok"),
    [("tcp", 100, 0, True), ("tcp", 99, 500, False), ("rdma", 500, 99, False), ("rdma", 0, 100, True)],
)
def test_the_bytes_came_by_the_declared_transport(transport: str, net: int, rdma: int, ok: bool) -> None:
    before = {"a": {"net": 10, "rdma": 20}, "b": {"net": 7, "rdma": 7}}
    after = {"a": {"net": 10 + net, "rdma": 20 + rdma}, "b": {"net": 7, "rdma": 7}}
    finding = smoke.wire_check(before, after, 100, transport)
    assert finding["ok"] is ok
    assert f"transport: {transport} (declared)" in finding["subject"]


SETTINGS = {"max_tokens": 4, "latency_ms": 300}


def answer(tokens: list[int], chunks: int = 2, done: bool = True, latency_s: float = 0.2) -> Json:
    """What ``ask_endpoint`` returns."""
    return {"tokens": tokens, "chunks": chunks, "done": done, "latency_s": latency_s, "ttft_s": 0.1}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (answer([1, 2, 3, 4]), []),
        (answer([1, 2, 3, 4], chunks=1), ["smoke.stream"]),
        (answer([1, 2, 3, 4], done=False), ["smoke.stream"]),
        (answer([1, 2, 3]), ["smoke.stream", "smoke.same_answer"]),
        (answer([], chunks=0, done=False), ["smoke.stream", "smoke.same_answer"]),
        (answer([1, 2, 3, 4], latency_s=0.31), ["smoke.latency"]),
        (answer([1, 2, 9, 4]), ["smoke.same_answer"]),
    ],
)
def test_an_answer_is_whole_in_time_and_the_same(asked: Json, names: list[str]) -> None:
    assert failed(smoke.answer_checks(asked, [1, 2, 3, 4], SETTINGS)) == names


def test_a_difference_is_placed() -> None:
    *_, same = smoke.answer_checks(answer([1, 2, 9, 4]), [1, 2, 3, 4], SETTINGS)
    assert same["measured"] == "differs from token 2 of 4"


def test_without_a_reference_nothing_is_compared() -> None:
    checks = smoke.answer_checks(answer([9, 9, 9, 9]), None, SETTINGS)
    assert [one["name"] for one in checks] == ["smoke.stream", "smoke.latency"]


def test_a_request_without_a_token_has_no_time_to_the_first() -> None:
    nothing = answer([], done=False) | {"ttft_s": None}
    assert smoke.figures(nothing) == {"ttft_ms": None, "latency_ms": 200.0, "output_tokens": 0}
    assert smoke.figures(answer([1]))["ttft_ms"] == 100.0


@contextmanager
def server(body: bytes, *, status: int = 200, length: int | None = None) -> Iterator[int]:
    """The port of a server that gives this answer; a length above the body's cuts it off."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # names that http.server asks for

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield int(http.server_address[1])
        http.shutdown()
        thread.join()


def test_counters_are_summed_over_workers_and_nodes_of_one_model() -> None:
    with server(METRICS.encode()) as port:
        one = smoke.read_metrics(["127.0.0.1"], port, "m")
        two = smoke.read_metrics(["127.0.0.1", "localhost"], port, "m")
    assert one == {
        smoke.TOKENS_FROM_REMOTE: 640.0,
        f"{smoke.NIXL_BYTES_BUCKET}:2.09715e+06": 1.0,
        f"{smoke.NIXL_BYTES_BUCKET}:8.38861e+06": 3.0,
        f"{smoke.NIXL_BYTES_BUCKET}:inf": 4.0,
    }
    assert two == {name: 2 * value for name, value in one.items()}
    assert {f"{bound:g}" for bound in smoke.BUCKET_BOUNDS} >= {"2.09715e+06", "8.38861e+06"}


STREAM = (
    b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
    b": a comment keeps the line open\n\n"
    b'data: {"choices": [{"token_ids": [5, 6]}]}\n\n'
    b'data: {"choices": [{"token_ids": [7], "finish_reason": "length"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 9}}\n\n'
)


def ask(port: int) -> Json:
    """Ask the server on that port."""
    asked: Json = smoke.ask_endpoint(f"http://127.0.0.1:{port}/v1/chat/completions", {}, 2)
    return asked


def test_a_whole_stream_is_read() -> None:
    with server(STREAM + b"data: [DONE]\n\n") as port:
        asked = ask(port)
    assert (asked["tokens"], asked["chunks"], asked["finish"], asked["done"]) == (
        [5, 6, 7],
        2,
        "length",
        True,
    )
    assert asked["usage"] == {"prompt_tokens": 9}
    assert 0 < asked["ttft_s"] <= asked["latency_s"]


@pytest.mark.parametrize(
    ("body", "length"), [(STREAM, None), (STREAM, 10_000), (STREAM + b'data: {"choi', None)]
)
def test_a_stream_that_is_cut_off_is_a_finding_and_no_crash(body: bytes, length: int | None) -> None:
    settings = {"max_tokens": 3, "latency_ms": 10_000}
    with server(STREAM + b"data: [DONE]\n\n") as port:
        assert failed(smoke.answer_checks(ask(port), None, settings)) == []
    with server(body, length=length) as port:
        asked = ask(port)
    assert asked["tokens"] == [5, 6, 7]
    assert failed(smoke.answer_checks(asked, None, settings)) == ["smoke.stream"]


def test_an_error_in_the_stream_is_told() -> None:
    wrong = STREAM + b'data: {"error": {"message": "engine dead"}}\n\n'
    with server(wrong) as port, pytest.raises(RuntimeError, match=r"answered with an error: .*engine dead"):
        ask(port)


def test_a_refused_request_is_told_with_its_reason() -> None:
    refused = server(b'{"error": "max_tokens is too large"}', status=400)
    with refused as port, pytest.raises(RuntimeError, match=r"answered 400: .*max_tokens is too large"):
        ask(port)


def test_whatever_stops_the_proof_is_its_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smoke.py", "{}"])
    assert smoke.main() == 2
    assert capsys.readouterr().out == '{"error": "ModuleNotFoundError: No module named \'ray\'"}\n'


def test_no_two_prompts_are_alike_and_each_repetition_costs_the_same() -> None:
    one, other = smoke.prompt_of(1), smoke.prompt_of(1)
    assert one != other
    grown = [len(smoke.prompt_of(words).split()) for words in (1, 2, 3)]
    assert grown[2] - grown[1] == grown[1] - grown[0] == 9


def test_elastic_engines_are_found_by_the_role_that_they_have_now() -> None:
    deployments = ["ElasticIngress", "Engine0:m", "Engine1:m", "Engine2:m", "Engine10:m"]
    roles = {"engine0": "prefill", "engine1": "decode", "engine2": "decode", "engine10": "prefill"}
    ratio = {"engines": [{"name": name, "role": role} for name, role in roles.items()]}
    assert smoke.elastic_roles(ratio, deployments) == (
        ["Engine0:m", "Engine10:m"],
        ["Engine1:m", "Engine2:m"],
    )
    aggregated = {"engines": [{"name": name, "role": "aggregated"} for name in roles]}
    assert smoke.elastic_roles(aggregated, deployments) == ([], [])
