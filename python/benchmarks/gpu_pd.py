"""Prefill-decode against aggregated serving on the GPUs of one host, every ratio by the same running engines.

usage: python gpu_pd.py PLAN.json OUT.json

Wants vLLM with NIXL, aiohttp and a GPU an engine; gpu_pd.json beside this file is a plan and shows its keys.
For each KV layout of the plan one vLLM server a GPU is started (``kv_both``: the role of an engine is decided
request by request), then each ratio is offered each rate of each workload: Poisson arrivals, fixed lengths,
random prompts that no cache knows, the least busy engine of a pool. A client hands each request from its
prefill engine to its decode engine, as a proxy would. Requests sent in the first ``warm_s`` seconds are not
counted; those sent later are, whenever they end. Prints a line a point and writes OUT.json: TTFT, TPOT and
E2E percentiles in ms, and what NIXL moved, from the engines' own metrics.

Its own client, because `vllm bench serve` needs a good part of a point's time to start, and one endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

PORT = 8100
SIDE_PORT = 5600
READY_S = 420
# Requests that are not through by then count as failed.
DRAIN_S = 120
# Metrics of an engine, summed over its requests.
NIXL = {
    "transfers": "vllm:nixl_xfer_time_seconds_count",
    "seconds": "vllm:nixl_xfer_time_seconds_sum",
    "post_seconds": "vllm:nixl_post_time_seconds_sum",
    "bytes": "vllm:nixl_bytes_transferred_sum",
    "descriptors": "vllm:nixl_num_descriptors_sum",
}
# From the arrival at the engine itself to the first token: without HTTP, text and the hand-off.
INSIDE = {"queue": "vllm:request_queue_time_seconds_sum", "prefill": "vllm:request_prefill_time_seconds_sum"}


@dataclass
class Engine:
    """A vLLM server on one GPU."""

    number: int
    process: subprocess.Popen[bytes]
    outstanding: int = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{PORT + self.number}"


@dataclass
class Request:
    """When a request was due, and when its first and last token came, in seconds of the monotonic clock."""

    due: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    error: str = ""


def start(number: int, model: str, layout: dict[str, Any], common: dict[str, Any], logs: Path) -> Engine:
    """Start a server; its output goes to a file of ``logs``."""
    argv = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    for key, value in {**common, **layout, "port": PORT + number}.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            argv.append(flag if value else f"--no-{flag[2:]}")
        else:
            argv += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": str(number),
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(SIDE_PORT + 10 * number),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # vLLM 0.26.0's other one keeps the layers of a block apart (kv_layouts.yml).
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    with (logs / f"engine{number}.log").open("wb") as sink:
        process = subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    return Engine(number, process)


def await_ready(engines: list[Engine], logs: Path) -> None:
    """Wait for all. Raises RuntimeError with the end of a log when one leaves or takes too long."""
    deadline = time.monotonic() + READY_S
    for engine in engines:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{engine.url}/health", timeout=5):  # noqa: S310  # http, above
                break
            if engine.process.poll() is not None or time.monotonic() > deadline:
                said = (logs / f"engine{engine.number}.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"engine {engine.number} is not ready:\n{said}")
            time.sleep(1)


def total(engines: list[Engine], names: dict[str, str] = NIXL) -> dict[str, float]:
    """What NIXL has moved so far, or what other metrics say, summed over all engines."""
    found = dict.fromkeys(names, 0.0)
    for engine in engines:
        with urllib.request.urlopen(f"{engine.url}/metrics", timeout=10) as answer:  # noqa: S310  # http, above
            text = answer.read().decode()
        for line in text.splitlines():
            for key, name in names.items():
                if line.startswith((name + "{", name + " ")):
                    found[key] += float(line.rsplit(" ", 1)[1])
    return found


def least_busy(engines: list[Engine]) -> Engine:
    """The engine with the fewest requests, any of them where there are several."""
    fewest = min(engine.outstanding for engine in engines)
    return random.choice([engine for engine in engines if engine.outstanding == fewest])  # noqa: S311  # no secret


async def check(answer: aiohttp.ClientResponse) -> None:
    """Raises aiohttp.ClientError with the server's words."""
    if not answer.ok:
        raise aiohttp.ClientError(f"{answer.status}: {(await answer.text())[:300]}")


async def prefill(session: aiohttp.ClientSession, pool: list[Engine], body: dict[str, Any]) -> dict[str, Any]:
    """Have a prompt's KV cache computed; returns where it lies."""
    engine = least_busy(pool)
    engine.outstanding += 1
    try:
        asked = {
            **body,
            "max_tokens": 1,
            "stream": False,
            "kv_transfer_params": {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "remote_engine_id": None,
                "remote_block_ids": None,
                "remote_host": None,
                "remote_port": None,
            },
        }
        async with session.post(f"{engine.url}/v1/completions", json=asked) as answer:
            await check(answer)
            place: dict[str, Any] = (await answer.json())["kv_transfer_params"]
            return place
    finally:
        engine.outstanding -= 1


async def serve(
    session: aiohttp.ClientSession,
    pools: tuple[list[Engine], list[Engine]],
    body: dict[str, Any],
    request: Request,
) -> None:
    """Send one request through its pools and note when tokens come."""
    prefills, decodes = pools
    try:
        if prefills:
            body = {**body, "kv_transfer_params": await prefill(session, prefills, body)}
        engine = least_busy(decodes)
        engine.outstanding += 1
        try:
            asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
            async with session.post(f"{engine.url}/v1/completions", json=asked) as answer:
                await check(answer)
                async for line in answer.content:
                    if b'"usage":{' in line:  # the last one, which carries no token
                        request.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
                    elif line.startswith(b"data: {"):
                        request.last = time.monotonic()
                        request.first = request.first or request.last
        finally:
            engine.outstanding -= 1
    except Exception as error:  # whatever it is, it is this request's end, and counted
        request.error = f"{type(error).__name__}: {error}"


async def offer(
    pools: tuple[list[Engine], list[Engine]],
    workload: dict[str, Any],
    rate: float,
    seconds: float,
    plan: dict[str, Any],
) -> list[Request]:
    """Offer a Poisson stream; returns its requests once all have ended."""
    draw = random.Random(f"{workload} {rate}")  # noqa: S311  # the same stream for every ratio, no secret
    # Made beforehand: drawing thousands of tokens would hold up the arrivals.
    bodies: list[dict[str, Any]] = []
    after: list[float] = []
    while sum(after) < seconds:
        after.append(draw.expovariate(rate))
        bodies.append(
            {
                "model": plan["model"],
                "prompt": [draw.randrange(10, plan["vocabulary"]) for _ in range(workload["isl"])],
                "max_tokens": workload["osl"],
                "ignore_eos": True,
                "temperature": 0,
            }
        )
    limit = aiohttp.ClientTimeout(total=seconds + DRAIN_S)
    requests: list[Request] = []
    async with aiohttp.ClientSession(
        timeout=limit, connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**20
    ) as session:
        running = []
        due = time.monotonic()
        for body, wait in zip(bodies, after, strict=True):
            due += wait
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            requests.append(Request(due))
            running.append(asyncio.create_task(serve(session, pools, body, requests[-1])))
        await asyncio.gather(*running)
    return requests


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90 and p99 of times in seconds, by nearest rank, in ms."""
    ordered = sorted(values)
    return {
        f"p{share}": round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))], 2)
        for share in (50, 90, 99)
    }


def summary(requests: list[Request], osl: int, warm_s: float) -> dict[str, Any]:
    """What clients saw of the requests that count."""
    counted = [one for one in requests if one.due >= requests[0].due + warm_s]
    good = [one for one in counted if not one.error and one.tokens == osl]
    errors = sorted({one.error or f"{one.tokens} of {osl} tokens" for one in counted if one not in good})
    if not good:
        return {"requests": len(counted), "failed": len(counted), "errors": errors[:3]}
    return {
        "requests": len(counted),
        "failed": len(counted) - len(good),
        "errors": errors[:3],
        "ttft": percentiles([one.first - one.due for one in good]),
        "tpot": percentiles([(one.last - one.first) / (osl - 1) for one in good]),
        "e2e": percentiles([one.last - one.due for one in good]),
        # Later requests that wait longer than earlier ones: a queue that grows.
        "ttft_p50_halves": [
            percentiles([one.first - one.due for one in half])["p50"]
            for half in (good[: len(good) // 2], good[len(good) // 2 :])
            if half
        ],
    }


def moved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """A transfer's means between two readings of the engines' metrics."""
    delta = {key: after[key] - before[key] for key in NIXL}
    if not delta["transfers"]:
        return {}
    count = delta["transfers"]
    return {
        "transfers": count,
        "mb": round(delta["bytes"] / count / 1e6, 1),
        "descriptors": round(delta["descriptors"] / count),
        "post_ms": round(1000 * delta["post_seconds"] / count, 2),
        "ms": round(1000 * delta["seconds"] / count, 2),
        "gb_per_s": round(delta["bytes"] / delta["seconds"] / 1e9, 1),
    }


def measure(
    engines: list[Engine], layout: str, step: dict[str, Any], plan: dict[str, Any]
) -> list[dict[str, Any]]:
    """All rates of one ratio and workload."""
    count = step["prefill"]
    pools = (engines[:count], engines[count:])
    name = f"{count}p{len(engines) - count}d" if count else f"{len(engines)}agg"
    found = []
    for rate in step["rates"]:
        before = total(engines)
        workload = {"isl": step["isl"], "osl": step["osl"]}
        requests = asyncio.run(offer(pools, workload, rate, plan["seconds"], plan))
        point = {
            **{"layout": layout, "config": name, "isl": step["isl"], "osl": step["osl"], "qps": rate},
            **summary(requests, step["osl"], plan["warm_s"]),
            "kv": moved(before, total(engines)),
        }
        sys.stdout.write(json.dumps(point) + "\n")
        sys.stdout.flush()
        found.append(point)
    return found


def main() -> int:
    """Measure the plan."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    logs = out.parent
    points: list[dict[str, Any]] = []
    for layout in plan["layouts"]:
        began = time.monotonic()
        engines = [
            start(number, plan["model"], layout["engine"], plan["engine"], logs)
            for number in range(plan["gpus"])
        ]
        try:
            await_ready(engines, logs)
            ready = time.monotonic() - began
            sys.stdout.write(f"{layout['name']}: {len(engines)} engines ready after {ready:.0f} s\n")
            # The first transfer of two engines makes their connection, the first prompt compiles kernels.
            for count in sorted({step["prefill"] for step in layout["steps"]}):
                warm = {"isl": 2000, "osl": 8}
                pools = (engines[:count], engines[count:])
                asyncio.run(offer(pools, warm, 8.0, 4.0, plan))
            for step in layout["steps"]:
                points += measure(engines, layout["name"], step, plan)
                out.write_text(json.dumps({"plan": plan, "points": points}, indent=1))
        finally:
            for engine in engines:
                engine.process.terminate()
            for engine in engines:
                try:
                    engine.process.wait(60)
                except subprocess.TimeoutExpired:
                    engine.process.kill()
                    engine.process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
