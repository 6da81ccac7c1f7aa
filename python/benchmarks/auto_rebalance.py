"""`splitrail rebalance --auto` on the lab: a load that breaks the TTFT, the move that follows, what failed.

usage: python python/benchmarks/auto_rebalance.py [--clients N] [--words N] [--factor F] [--json FILE]

The lab must stand and serve its prefill-decode topology (`make lab`), with nothing else of it under way. The
ratio is made 1P2D. One client with long prompts and short answers shows, through `splitrail top`, what TTFT
the engines have; its p50 times F becomes the SLA. Then N such clients ask without end, so that prompts queue
at the one prefill engine, while `splitrail rebalance --auto` runs with a policy of that SLA, until it has
moved one engine and looked once more, a window later. Every answer must be whole; nobody asks again.

Prints a Markdown table, and what the command said on standard error. Exit code 0 when it moved one engine to
prefill, the engines that were to stay stayed (by their actors' ids), and no request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from safe_deploys import INVENTORY, ROOT, client, splitrail

FIRST, THEN = "1P2D", "2P1D"
TOKENS = 8
# Longest wait for the move, in seconds: two windows that agree, and an engine that loads on two busy cores.
PATIENCE_S = 900
Json = dict[str, Any]


@dataclass
class Load:
    """Requests without end, until ``stop`` is set: when each ended, its TTFT in s, and why it failed."""

    clients: int
    words: int
    stop: threading.Event = field(default_factory=threading.Event)
    ended: list[tuple[float, float, str]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        """Begin."""
        self.threads = [threading.Thread(target=self.send, args=(seed,)) for seed in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, with every request answered."""
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def send(self, seed: int) -> None:
        """One client."""
        # Another prompt each time, or prefix caches would spare prefill its work.
        draw = random.Random(f"{time.time()} {seed}")  # noqa: S311  no secret
        with client() as who:
            while not self.stop.is_set():
                prompt = " ".join(draw.choice(("the", "quick", "brown", "fox")) for _ in range(self.words))
                self.ended.append(ask(who, f"{draw.random()} {prompt}"))


def ask(who: httpx.Client, prompt: str) -> tuple[float, float, str]:
    """One streamed request: when it ended, its TTFT in s, and why it failed; empty when it did not."""
    body = {
        "model": "lab-qwen3",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began, first, finished = time.monotonic(), 0.0, ""
    try:
        with who.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"]))
                first = first or time.monotonic() - began
                finished = next(
                    (c["finish_reason"] for c in event["choices"] if c["finish_reason"]), finished
                )
        why = "" if finished == "length" else "the answer is not whole"
    except (httpx.HTTPError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
    return time.monotonic(), first, why


def asked_for(*words: str) -> Json:
    """The JSON of a command that only looks, on the lab; exit code 1 is a warning of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "splitrail", *words, "-i", str(INVENTORY), "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"splitrail {' '.join(words)}: {done.stderr[-2000:]}")
    found: Json = json.loads(done.stdout)
    return found


def engines() -> set[str]:
    """Actor ids of all engines; the front is none."""
    applications = asked_for("status")["serving"]["applications"]
    return {
        actor
        for app in applications
        for one in app["deployments"]
        if ":" in one["name"]
        for actor in one["actors"]
    }


def usual_ttft_ms() -> float:
    """The engines' p50 TTFT of one window, in ms. Raises RuntimeError where it was not measured."""
    found = asked_for("top", "--once").get("ttft_ms", {}).get("p50")
    if found is None:
        raise RuntimeError("splitrail top measured no TTFT: does the lab serve?")
    return float(found)


@dataclass
class Watch:
    """What the command did: its decisions, and its exit code.

    ``decided``, ``effect``: when it said that it moves an engine, and when it looked again after that; on the
    clock of ``time.monotonic``, None where it did not in time.
    """

    said: list[str] = field(default_factory=list)
    decided: float | None = None
    effect: float | None = None
    code: int = 0


def watched(limit_ms: float, folder: Path) -> Watch:
    """Run the command until it has moved an engine and decided once more."""
    policy = folder / "policy.yml"
    # Whatever decode takes is well, so that it has an engine to give.
    sla = [f"ttft_p50={limit_ms:.0f}", "tpot_p50=60000"]
    policy.write_text(yaml.safe_dump({"sla": sla, "windows": 2, "requests": 4}))
    command = [sys.executable, "-m", "splitrail", "rebalance", "--auto", "--policy", str(policy)]
    found = Watch()
    with subprocess.Popen(
        [*command, "-i", str(INVENTORY)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        late = threading.Timer(PATIENCE_S, process.send_signal, (signal.SIGINT,))
        late.start()
        for line in process.stdout or ():
            moves = f" {FIRST} to {THEN}: " in line
            if moves or " hold: " in line:
                found.said.append(line.strip())
                # The first decision after a move: what was to be changed is in effect.
                if found.decided is not None and found.effect is None:
                    found.effect = time.monotonic()
                    process.send_signal(signal.SIGINT)
            if moves:
                found.decided = time.monotonic()
        late.cancel()
        found.code = process.wait()
    return found


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--words", type=int, default=600, help="of a prompt")
    parser.add_argument("--factor", type=float, default=1.5, help="SLA over the usual TTFT")
    parser.add_argument("--json", type=Path, help="file for the figures")
    asked = parser.parse_args()
    splitrail("rebalance", "--to", FIRST)
    with Load(1, asked.words) as calm:
        usual = usual_ttft_ms()
    limit = usual * asked.factor
    before = engines()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Load(asked.clients, asked.words) as load:
        watch = watched(limit, Path(folder))
        after = engines()
    ended = [*calm.ended, *load.ended]
    failures = [why for _, _, why in ended if why]
    row = {
        "move": f"{FIRST} to {THEN}" if watch.effect else "none",
        "TTFT p50 of one client, ms": round(usual),
        "limit, ms": round(limit),
        "decided after s": since(began, watch.decided),
        "in effect, and seen so, after s": since(began, watch.effect),
        "requests": len(ended),
        "failed": len(failures),
        "longest TTFT, s": round(max((ttft for _, ttft, _ in load.ended), default=0.0), 1),
        # One decode engine goes.
        "engines kept": f"{len(before & after)} of {len(before) - 1}",
    }
    if asked.json:
        asked.json.write_text(json.dumps({**row, "said": watch.said}, indent=1) + "\n")
    sys.stdout.write(f"| {' | '.join(row)} |\n|{'---|' * len(row)}\n")
    sys.stdout.write(f"| {' | '.join(map(str, row.values()))} |\n")
    sys.stderr.write("\n".join([*watch.said, *sorted(set(failures))]) + "\n")
    good = watch.effect and not watch.code and not failures and len(before & after) == len(before) - 1
    return 0 if good else 1


def since(began: float, then: float | None) -> int | None:
    """Whole seconds between two times; None for one that never came."""
    return None if then is None else round(then - began)


if __name__ == "__main__":
    sys.exit(main())
