"""Prove that what is served answers right and, in prefill-decode mode, that the KV cache really moved.

Runs inside the serving image on Ray's head, as a driver of the cluster. Takes its settings as JSON on the
command line and prints one JSON document on its last line: {"checks": [...], "figures": {...}, "seconds": s}.
Exit code 0 when it could run, whatever the checks say; 2 with {"error": str} when it could not.

How the proof works. The same prompt is asked twice at temperature 0: once of a prefill engine alone,
through its Serve handle, which serves it aggregated (both phases on one engine, nothing moves), and once
through the public endpoint, streamed, which hands the prompt's KV cache to a decode engine. The answers
must be equal token for token. Of the second request three independent counters must have risen: vLLM's
tokens taken from a remote engine (exact), NIXL's bytes (vLLM exports a histogram of them, an entry for
each rank's transfer, so the prompt is made just long enough to pass a bucket's bound, which each rank's
transfer must then have passed), and the bytes that came in on the decode nodes' NICs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TOKENS_FROM_REMOTE = "ray_vllm_external_prefix_cache_hits_total"
NIXL_BYTES_BUCKET = "ray_vllm_nixl_bytes_transferred_bucket"
NIXL_FAILED = "ray_vllm_nixl_num_failed_transfers_total"
# vLLM's buckets of bytes a transfer: 2 KiB times powers of four.
BUCKET_BOUNDS = [2048 * 4**power for power in range(12)]
# A prompt shorter than this says little; one much longer takes its time on a small machine.
SHORTEST_PROMPT = 256


def check(
    name: str, subject: str, ok: bool, measured: Any, required: Any, *, unit: str = "", hint: str = ""
) -> Json:
    """One finding of the verdict."""
    return {
        "name": f"smoke.{name}",
        "subject": subject,
        "ok": bool(ok),
        "measured": measured,
        "required": required,
        "unit": unit,
        "hint": hint,
    }


def kv_bytes_per_token(model: Any, cache_dtype: str, dtype: str, tensor_parallel: int) -> int:
    """Bytes of KV cache that one token takes, summed over the ranks of an engine.

    2 (K and V) x layers x KV heads x head size x bytes of an element; KV heads are copied where there
    are fewer of them than ranks. With multi-head latent attention each layer keeps one latent and
    one rotary vector instead, and every rank has its copy.
    """
    element = 4 if dtype in ("float32", "float") else 2
    if cache_dtype.startswith("fp8"):
        element = 1
    text = model.get_text_config()
    if getattr(text, "kv_lora_rank", None):
        return int(
            text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) * element * tensor_parallel
        )
    heads = max(text.num_key_value_heads, tensor_parallel)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * element)


def describe_model(source: str, engine: Json) -> Json:
    """What the proof needs to know of the model; runs on a node that has it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    dtype = engine.get("dtype", "auto")
    if dtype == "auto":
        dtype = str(config.dtype).removeprefix("torch.")
    ranks = engine.get("tensor_parallel_size", 1)
    return {"bytes_per_token": kv_bytes_per_token(config, engine.get("kv_cache_dtype", "auto"), dtype, ranks)}


def received_bytes() -> Json:
    """Bytes that came in on this node's NICs, over Ethernet and over RDMA (counted in 4-byte words)."""
    net = sum(
        int(file.read_text())
        for file in Path("/sys/class/net").glob("*/statistics/rx_bytes")
        if file.parts[4] != "lo"
    )
    rdma = sum(
        4 * int(file.read_text())
        for file in Path("/sys/class/infiniband").glob("*/ports/*/counters/port_rcv_data")
    )
    return {"net": net, "rdma": rdma}


def read_metrics(addresses: list[str], port: int, model: str) -> dict[str, float]:
    """Sum over the nodes of the counters that the proof looks at; buckets are keyed ``<name>:<bound>``."""
    found: dict[str, float] = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in addresses:
        with opener.open(f"http://{address}:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        for name, labels, value in re.findall(r"^(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            if f'model_name="{model}"' not in labels:
                continue
            bound = re.search(r'le="([^"]+)"', labels)
            key = f"{name}:{float(bound.group(1)):g}" if bound else name
            found[key] = found.get(key, 0.0) + float(value)
    return found


def ask_endpoint(url: str, request: Json, timeout_s: float, api_key: str = "") -> Json:
    """Send a streamed chat completion; returns tokens, times in seconds, and whether the stream was whole.

    Raises RuntimeError when the endpoint refuses the request or reports an error in the stream.
    """
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    # The certificate is for the name that clients use; this asks the node that it runs on.
    own = ssl.create_default_context()
    own.check_hostname, own.verify_mode = False, ssl.CERT_NONE
    sent = time.monotonic()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=own)
    )
    try:
        answer = opener.open(
            urllib.request.Request(url, json.dumps(request).encode(), headers),  # noqa: S310  ours, http
            timeout=timeout_s,
        )
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[-1000:]
        raise RuntimeError(f"the endpoint answered {error.code}: {said}") from error
    asked: Json = {"tokens": [], "ttft_s": None, "chunks": 0, "usage": {}, "finish": None, "done": False}
    # A stream that is cut off, between two events or within one, lacks its [DONE], which is what counts.
    with answer, contextlib.suppress(OSError, HTTPException, ValueError):
        for raw in answer:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                asked["done"] = True
            elif line.startswith("data: "):
                take_event(asked, json.loads(line[6:]), time.monotonic() - sent)
    asked["latency_s"] = time.monotonic() - sent
    return asked


def take_event(asked: Json, event: Json, at_s: float) -> None:
    """Add one event of the stream, which came at_s after the request. Raises RuntimeError for an error."""
    if "error" in event:
        raise RuntimeError(f"the endpoint answered with an error: {event['error']}")
    asked["usage"] = event.get("usage") or asked["usage"]
    for choice in event.get("choices", []):
        if choice.get("token_ids"):
            asked["ttft_s"] = at_s if asked["ttft_s"] is None else asked["ttft_s"]
            asked["tokens"] += choice["token_ids"]
            asked["chunks"] += 1
        asked["finish"] = choice.get("finish_reason") or asked["finish"]


def answer_checks(asked: Json, reference: list[int] | None, settings: Json) -> list[Json]:
    """Whether the streamed answer is whole, in time, and equal to the aggregated one."""
    count, latency_ms = settings["max_tokens"], round(1000 * asked["latency_s"], 1)
    end = "ended" if asked["done"] else "cut off"
    whole = asked["done"] and len(asked["tokens"]) == count and asked["chunks"] > 1
    checks = [
        check(
            "stream",
            "/v1/chat/completions",
            whole,
            f"{len(asked['tokens'])} tokens in {asked['chunks']} chunks, {end}",
            f"{count} tokens in several chunks, ended",
            hint="Read the ingress and engine logs in Ray's dashboard.",
        ),
        check(
            "latency",
            f"{count} tokens",
            latency_ms <= settings["latency_ms"],
            latency_ms,
            settings["latency_ms"],
            unit="ms",
            hint="Look at the engines' queues in Ray's dashboard, and whether the nodes do something else.",
        ),
    ]
    if reference is not None:
        equal = reference == asked["tokens"]
        alike = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(reference, asked["tokens"], strict=False)
        )
        at = sum(1 for _ in alike)
        checks.append(
            check(
                "same_answer",
                "prefill-decode against aggregated",
                equal,
                "equal" if equal else f"differs from token {at} of {len(reference)}",
                "equal",
                hint="Do not serve from this deploy: the KV cache arrived damaged or in another layout. "
                "Compare block size, dtype and attention backend of prefill and decode.",
            )
        )
    return checks


def kv_checks(
    before: Json, after: Json, *, prompt_tokens: int, expected: int, ranks: int, block: int
) -> list[Json]:
    """Whether the counters of the engines say that the prompt's KV cache came from another engine.

    expected: bytes of the prompt's KV cache, summed over the ranks of a decode engine; each fetches its own.
    """

    def rose(key: str) -> float:
        return float(after.get(key, 0.0) - before.get(key, 0.0))

    hint = "Look at kv_transfer_config and the decode engine's log: it may have computed the prompt itself."
    bound = max(limit for limit in BUCKET_BOUNDS if limit < expected / ranks)
    total, small = rose(f"{NIXL_BYTES_BUCKET}:inf"), rose(f"{NIXL_BYTES_BUCKET}:{bound:g}")
    return [
        check(
            "kv_tokens",
            "tokens whose KV came from a remote engine",
            rose(TOKENS_FROM_REMOTE) >= prompt_tokens - block,
            rose(TOKENS_FROM_REMOTE),
            f"{prompt_tokens} less at most a block of {block}",
            unit="tokens",
            hint=hint,
        ),
        check(
            "kv_bytes",
            "NIXL transfers",
            total - small >= ranks,
            f"{total:g} transfers, {total - small:g} of more than {bound}",
            f"{ranks} of {expected // ranks}",
            unit="B",
            hint=hint,
        ),
        check(
            "kv_failures",
            "NIXL transfers",
            rose(NIXL_FAILED) == 0,
            rose(NIXL_FAILED),
            0,
            unit="failed",
            hint="Read the decode engine's log; the fabric may drop or refuse transfers.",
        ),
    ]


def wire_check(before: Json, after: Json, expected: int, transport: str) -> Json:
    """Whether the bytes came in on the decode nodes' NICs, by the transport that was declared."""
    kind = "rdma" if transport == "rdma" else "net"
    rose = sum(after[node][kind] - before[node][kind] for node in before)
    return check(
        "kv_wire",
        f"bytes received by the decode nodes, transport: {transport} (declared)",
        rose >= expected,
        rose,
        expected,
        unit="B",
        hint="The KV cache took another way than declared: read UCX_TLS and UCX_NET_DEVICES "
        "of the engines, and run the fabric playbook.",
    )


def elastic_roles(ratio: Json, deployments: list[str]) -> tuple[list[str], list[str]]:
    """Deployments of elastic engines by role, prefill and decode, as the ingress says it."""
    roles = {one["name"]: one["role"] for one in ratio["engines"]}
    engines = {name: roles.get(name.partition(":")[0].lower()) for name in deployments}
    found = [[name for name, has in engines.items() if has == role] for role in ("prefill", "decode")]
    return found[0], found[1]


class Cluster:
    """The running application, seen from a driver of the cluster."""

    def __init__(self, settings: Json) -> None:
        import ray
        from ray import serve

        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        self.ray, self.settings = ray, settings
        self.app = settings["app_name"]
        status = serve.status().applications.get(self.app)
        if status is None or status.status != "RUNNING":
            raise RuntimeError(
                f"application {self.app} is {status.status if status else 'not deployed'}; "
                "run the serve playbook"
            )
        self.deployments = list(status.deployments)
        self.alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}

    def roles(self) -> tuple[list[str], list[str]]:
        """Deployments of prefill engines and of decode engines; of elastic ones, those that are so now."""
        if "ElasticIngress" in self.deployments:
            from ray import serve

            said = serve.get_deployment_handle("ElasticIngress", self.app).ratio.remote().result(timeout_s=60)
            return elastic_roles(said, self.deployments)
        found = [[n for n in self.deployments if n.startswith(kind)] for kind in ("Prefill:", "Decode:")]
        return found[0], found[1]

    def nodes_of(self, deployments: list[str]) -> list[str]:
        """Ids of the nodes on which replicas of deployments run."""
        from ray.util.state import list_actors

        actors = list_actors(filters=[("state", "=", "ALIVE")], limit=10000, detail=True)
        starts = tuple(f"SERVE_REPLICA::{self.app}#{deployment}#" for deployment in deployments)
        return sorted({a.node_id for a in actors if a.name and a.name.startswith(starts)})

    def on(self, node: str, function: Any, *arguments: Any) -> Any:
        """Run a function on a node and return what it returns; reserves nothing there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self.ray.remote(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        return self.ray.get(remote(function).remote(*arguments), timeout=120)

    def ask_engine(self, deployment: str, request: Json) -> Json:
        """Ask an engine alone, past the ingress; returns prompt length and tokens."""
        from ray import serve
        from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest

        handle = serve.get_deployment_handle(deployment, self.app).options(stream=True)
        answer = None
        for chunk in handle.chat.remote(ChatCompletionRequest(**request), None):
            answer = chunk
        if not hasattr(answer, "choices"):
            raise RuntimeError(f"{deployment} answered with an error: {answer}")
        return {"tokens": list(answer.choices[0].token_ids), "prompt_tokens": answer.usage.prompt_tokens}


def prompt_of(words: int) -> str:
    """A prompt that no engine has seen before, so that none has its KV cache."""
    return f"{uuid.uuid4()} " + " ".join(["the quick brown fox jumps over the lazy dog"] * words)


def run(settings: Json) -> Json:
    """Make the proof."""
    cluster = Cluster(settings)
    count, model = settings["max_tokens"], settings["model_id"]
    request = {
        "model": model,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    url, api_key = f"{settings['endpoint']}/v1/chat/completions", settings["api_key"]
    stream = {"stream": True, "stream_options": {"include_usage": True}}

    def messages(words: int) -> Json:
        return {"messages": [{"role": "user", "content": prompt_of(words)}]}

    prefills, decodes = cluster.roles()
    # Elastic engines of which each does both move no KV cache.
    if settings["mode"] == "aggregated" or (settings["mode"] == "elastic" and not decodes):
        asked = ask_endpoint(url, {**request, **messages(16), **stream}, settings["timeout_s"], api_key)
        return {"checks": answer_checks(asked, None, settings), "figures": figures(asked)}

    if not prefills:
        raise RuntimeError(
            f"the application has no prefill engines ({', '.join(cluster.deployments)}): it is served "
            f"otherwise while llm_serve_mode says {settings['mode']}; run the serve playbook, or set the mode"
        )
    prefill = prefills[0]
    prefill_nodes, decode_nodes = cluster.nodes_of(prefills), cluster.nodes_of(decodes)
    engine = settings["engine_kwargs"]
    per_token = cluster.on(decode_nodes[0], describe_model, settings["model_source"], engine)[
        "bytes_per_token"
    ]
    ranks = engine.get("tensor_parallel_size", 1)
    tokens = next(
        limit * ranks / per_token for limit in BUCKET_BOUNDS if limit * ranks / per_token >= SHORTEST_PROMPT
    )
    # Two lengths give the tokens a repetition costs and those the chat template adds; 5 % keep clear of the
    # bound.
    short, long = (
        cluster.ask_engine(prefill, {**request, **messages(n), "max_tokens": 1})["prompt_tokens"]
        for n in (1, 9)
    )
    words = math.ceil((1.05 * tokens - short) / ((long - short) / 8)) + 1
    body = messages(words)
    reference = cluster.ask_engine(prefill, {**request, **body})
    expected = reference["prompt_tokens"] * per_token

    addresses = [cluster.alive[node] for node in decode_nodes]
    counters = read_metrics(addresses, settings["metrics_port"], model)
    wire = {node: cluster.on(node, received_bytes) for node in decode_nodes}
    asked = ask_endpoint(url, {**request, **body, **stream}, settings["timeout_s"], api_key)
    wire_after = {node: cluster.on(node, received_bytes) for node in decode_nodes}
    checks = answer_checks(asked, reference["tokens"], settings)
    # Ray collects metrics every few seconds; ask until they show the transfer or a minute is over.
    deadline = time.monotonic() + 60
    while True:
        after = read_metrics(addresses, settings["metrics_port"], model)
        found = kv_checks(
            counters,
            after,
            prompt_tokens=reference["prompt_tokens"],
            expected=expected,
            ranks=ranks,
            block=engine.get("block_size", 16),
        )
        if all(one["ok"] for one in found) or time.monotonic() > deadline:
            break
        time.sleep(1)
    checks += found
    if not set(prefill_nodes) & set(decode_nodes):
        checks.append(wire_check(wire, wire_after, expected, settings["transport"]))
    return {
        "checks": checks,
        "figures": {**figures(asked), "prompt_tokens": reference["prompt_tokens"], "kv_bytes": expected},
    }


def figures(asked: Json) -> Json:
    """Times of the request, in milliseconds; no time to first token where none came."""
    return {
        "ttft_ms": None if asked["ttft_s"] is None else round(1000 * asked["ttft_s"], 1),
        "latency_ms": round(1000 * asked["latency_s"], 1),
        "output_tokens": len(asked["tokens"]),
    }


def main() -> int:
    """Run with the settings named on the command line."""
    started = time.monotonic()
    try:
        report = run(json.loads(sys.argv[1]))
    except Exception as error:  # whatever stops the proof is its result
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 2
    print(json.dumps({**report, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
