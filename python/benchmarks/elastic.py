"""Elastic engines of the lab under a steady load: their ratio is changed, and each of them is killed.

usage: python python/benchmarks/elastic.py [--requests N] [--clients C] [--changes R,R,...]
                                           [--kill engine|replica|none]

Wants the lab with `-e topology_name=lab-elastic-1p2d` served. First each prompt is asked with every engine
doing both (aggregated): those tokens are what is right. Then clients ask, one request after another, half of
them streamed, and every token is compared. Meanwhile the ratio is changed by the module that `splitrail
rebalance` runs, and then, at the last ratio, each engine is killed with SIGKILL: its vLLM engine, or the
whole replica. Prints two Markdown tables; exit code 1 when an answer was wrong, a request failed while
nothing was killed, or a replica changed without being killed.

A failure is a request whose client got an error or an answer that is not whole; nobody asks again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/lab"
MODEL = "lab-qwen3"
TOKENS = 16
PROMPTS = 8
# How long an engine of the lab takes to start again at most, in seconds.
BACK_S = 420
Json = dict[str, Any]


@dataclass
class Load:
    """What clients saw: outcomes, and when each failure came."""

    right: list[list[int]]
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def take(self) -> Counter[str]:
        """The outcomes since the last call."""
        taken, self.outcomes, self.longest_s = self.outcomes, Counter(), 0.0
        return taken


def request(number: int, *, stream: bool) -> Json:
    """One of the prompts, each long enough for a few blocks of KV cache."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"count from {number % PROMPTS} " + "upwards and on " * 60}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }


async def ask(client: httpx.AsyncClient, number: int, *, stream: bool) -> list[int]:
    """The tokens of an answer. Raises httpx.HTTPError, or ValueError for one that is not whole."""
    body = request(number, stream=stream)
    tokens: list[int] = []
    if not stream:
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        tokens = answer.json()["choices"][0]["token_ids"]
    else:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(str(event["error"]))
                    for choice in event["choices"]:
                        tokens += choice.get("token_ids") or []
    if len(tokens) != TOKENS:
        raise ValueError(f"{len(tokens)} tokens of {TOKENS}")
    return tokens


async def keep_asking(client: httpx.AsyncClient, load: Load, numbers: Any, stop: asyncio.Event) -> None:
    """One client: a request after another."""
    while not stop.is_set():
        number = next(numbers)
        began = time.monotonic()
        try:
            tokens = await ask(client, number, stream=number % 2 == 0)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            load.outcomes["failed"] += 1
            load.failures.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(0.5)  # the pace of a client that tries again
            continue
        load.longest_s = max(load.longest_s, time.monotonic() - began)
        load.outcomes["right" if tokens == load.right[number % PROMPTS] else "wrong"] += 1


async def on_head(module: str, arguments: Json) -> Json:
    """What a module answers on the head. Raises RuntimeError with what Ansible said."""
    process = await asyncio.create_subprocess_exec(
        str(ROOT / ".venv/bin/ansible"), "head", "-i", str(INVENTORY), "--become", "-m", module,
        "-a", json.dumps(arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    if process.returncode:
        raise RuntimeError(said[-2000:])
    answer: Json = json.JSONDecoder().raw_decode(said.partition("=>")[2].lstrip())[0]
    return answer


async def change(wanted: str) -> Json:
    """Another ratio, ``2P1D`` or ``3agg``, as `splitrail rebalance` makes it."""
    split = wanted.lower().removesuffix("d").partition("p")
    ratio = (
        {"aggregated": int(wanted[:-3])}
        if wanted.endswith("agg")
        else {"prefill": int(split[0]), "decode": int(split[2])}
    )
    return await on_head(
        "splitrail_serve_slots",
        {
            "action": "scaled",
            "ratio": ratio,
            "url": f"http://{head()}:8265",
            "token_path": "/etc/ray/token",
            "last_good": "/etc/splitrail/serve/current.yaml",
        },
    )


def head() -> str:
    """Address of the lab's head."""
    hosts = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return str(hosts["all"]["children"]["head"]["hosts"]["lab-head"]["ansible_host"])


def kill(engine: int, what: str) -> str:
    """Kill an engine wherever it runs; returns what was killed. Raises RuntimeError where nothing was."""
    # vLLM's engine is a child of the replica, beside others of Python's own.
    victim = "$replica" if what == "replica" else '$(pgrep -P "$replica" -f "^VLLM::" | head -1)'
    script = (
        f"replica=$(pgrep -f '^ray::ServeReplica:.*:Engine{engine}:' | head -1); "
        f'test -n "$replica" || exit 1; victim={victim}; cat /proc/$victim/comm; kill -KILL $victim'
    )
    said = []
    for node in ("lab-prefill", "lab-decode"):
        done = subprocess.run(
            [sys.executable, "-m", "splitrail", "lab", "ssh", "-i", str(INVENTORY), node, "--",
             f"sudo bash -c {shlex.quote(script)}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout.strip().splitlines()[-1]
        said.append(f"{node}: {done.stderr.strip()[-300:]}")
    raise RuntimeError(f"no node runs Engine{engine}: {'; '.join(said)}")


async def changes(client: httpx.AsyncClient, load: Load, ratios: list[str], each: int) -> bool:
    """Change the ratio under load; prints a row a change, and says whether all was well."""
    well = True
    sys.stdout.write(
        "| ratio | in effect after | requests | failed | wrong | replicas that changed |\n"
        "|---|---|---|---|---|---|\n"
    )
    for wanted in ratios:
        load.take()
        done = await change(wanted)
        while sum(load.outcomes.values()) < each:
            await asyncio.sleep(0.1)
        outcomes = load.take()
        now = (await client.get("/-/ratio")).json()
        actors = done.get("actors", {"before": {}, "after": {}})
        moved = sum(actors["before"][name] != ids for name, ids in actors["after"].items())
        well = well and not (outcomes["failed"] or outcomes["wrong"] or moved)
        sys.stdout.write(
            f"| {now['prefill']}P{now['decode']}D | {done.get('in_effect_s', 0)} s "
            f"| {sum(outcomes.values())} | {outcomes['failed']} | {outcomes['wrong']} "
            f"| {moved} of {len(actors['after'])} |\n"
        )
        sys.stdout.flush()
    return well


async def kills(client: httpx.AsyncClient, load: Load, what: str) -> bool:
    """Kill each engine under load; prints a row an engine, and says whether no answer was wrong."""
    well = True
    sys.stdout.write(
        "\n| killed | failed | wrong | requests meanwhile | longest answer | engine back after |\n"
        "|---|---|---|---|---|---|\n"
    )
    count = len((await client.get("/-/ratio")).json()["engines"])
    for number in range(count):
        role = (await client.get("/-/ratio")).json()["engines"][number]["role"]
        load.take()
        killed = await asyncio.to_thread(kill, number, what)
        began = time.monotonic()
        seen = False
        while time.monotonic() - began < BACK_S:
            await asyncio.sleep(0.25)
            up = (await client.get("/-/ratio")).json()["engines"][number]["up"]
            seen = seen or not up
            if seen and up:
                break
        back = time.monotonic() - began
        longest = load.longest_s
        outcomes = load.take()
        well = well and seen and back < BACK_S and not outcomes["wrong"]
        sys.stdout.write(
            f"| engine {number} ({role}): {killed} | {outcomes['failed']} | {outcomes['wrong']} "
            f"| {sum(outcomes.values())} | {longest:.1f} s "
            f"| {f'{back:.0f} s' if seen else 'never seen gone'} |\n"
        )
        sys.stdout.flush()
        await asyncio.sleep(5)
    return well


async def run(given: argparse.Namespace) -> bool:
    """Measure."""
    key = (ROOT / ".secrets/lab/api_key").read_text().strip()
    ratios = given.changes.split(",")
    async with httpx.AsyncClient(
        base_url=f"http://{head()}:8000",
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
        trust_env=False,
    ) as client:
        count = len((await client.get("/-/ratio")).raise_for_status().json()["engines"])
        await change(f"{count}agg")
        right = [await ask(client, number, stream=False) for number in range(PROMPTS)]
        load = Load(right)
        stop, numbers = asyncio.Event(), itertools.count()
        clients = [
            asyncio.create_task(keep_asking(client, load, numbers, stop)) for _ in range(given.clients)
        ]
        try:
            well = await changes(client, load, ratios, given.requests // len(ratios))
            if given.kill != "none":
                well = await kills(client, load, given.kill) and well
        finally:
            stop.set()
            await asyncio.gather(*clients, return_exceptions=True)
        counts = (await client.get("/-/ratio")).json()["requests"]
    sys.stdout.write(f"\nThe ingress counted {json.dumps(counts)}.\n")
    for failure, times in Counter(load.failures).most_common(5):
        sys.stdout.write(f"{times} times: {failure}\n")
    return well


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Elastic engines of the lab under a steady load.")
    parser.add_argument("--requests", type=int, default=600, help="over all changes of the ratio")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--changes", default="1P2D,2P1D,3agg,2P1D,1P2D", help="ratios, one after another")
    parser.add_argument("--kill", choices=["engine", "replica", "none"], default="engine")
    return 0 if asyncio.run(run(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
