"""Change what the lab serves under a steady load of real requests, and count what fails.

usage: python python/benchmarks/safe_deploys.py [CASE ...]     cases: see CASES below; by default all

The lab must stand and serve (`make lab`), with nothing else of it under way. Two clients send a streamed
request of 16 tokens every second each, without end, and compare every answer with the one before the first
change. Meanwhile each case runs the command that a user would. Prints a Markdown table: how long the command
took, the requests that ended meanwhile, how many of them failed or were answered wrong, the longest that one
took, and the engines that were there before and are still there, by their actors' ids. Exit code 0 when no
request failed, none was answered wrong, and every engine that was to stay stayed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/lab"
TOKENS, PROMPTS, CLIENTS, EVERY_S = 16, 4, 2, 1.0
Json = dict[str, Any]


def endpoint() -> str:
    """Address of the lab's OpenAI-compatible endpoint."""
    hosts = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return f"http://{hosts['all']['children']['head']['hosts']['lab-head']['ansible_host']}:8000"


def client(timeout_s: float = 120) -> httpx.Client:
    """Someone with the lab's key, who waits so long for each piece of an answer."""
    key = (ROOT / ".secrets/lab/api_key").read_text().strip()
    return httpx.Client(
        base_url=endpoint(), headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s, trust_env=False
    )


def ask(who: httpx.Client, number: int) -> list[int]:
    """One streamed request; its tokens. Raises httpx.HTTPError, or ValueError for one that is not whole."""
    request = {
        "model": "lab-qwen3",
        "messages": [{"role": "user", "content": f"count from {number % PROMPTS} " + "upwards and on " * 40}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    tokens: list[int] = []
    with who.stream("POST", "/v1/chat/completions", json=request) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"]))
                for choice in event["choices"]:
                    tokens += choice.get("token_ids") or []
    if len(tokens) != TOKENS:
        raise ValueError(f"{len(tokens)} tokens of {TOKENS}")
    return tokens


@dataclass
class Load:
    """Requests without end, until ``stop`` is set; what came of each, with the time at which it ended."""

    right: list[list[int]]
    stop: threading.Event = field(default_factory=threading.Event)
    ended: list[tuple[float, float, str]] = field(default_factory=list)
    timeout_s: float = 120

    def send(self, first: int) -> None:
        """One client: a request a second, or as soon as the one before has ended."""
        number = first
        with client(self.timeout_s) as who:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    what = "" if ask(who, number) == self.right[number % PROMPTS] else "wrong"
                except (httpx.HTTPError, ValueError) as error:
                    what = f"{type(error).__name__}: {error}"[:200]
                now = time.monotonic()
                self.ended.append((now, now - began, what))
                number += CLIENTS
                self.stop.wait(max(0.0, EVERY_S - (now - began)))


def splitrail(*words: str, code: int = 0) -> Json:
    """Run a command on the lab; its report. Raises RuntimeError when it ends with another exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "splitrail", *words, "-i", str(INVENTORY), "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != code:
        raise RuntimeError(f"splitrail {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    report: Json = json.loads(done.stdout)
    return report


def actors() -> dict[str, set[str]]:
    """Actor ids of the engines of each application and pool; the front is none."""
    return {
        f"{app['name']} {one['name'].partition(':')[0]}": set(one["actors"])
        for app in splitrail("status")["serving"]["applications"]
        for one in app["deployments"]
        if ":" in one["name"]
    }


def changed_topology(folder: Path, sequences: int) -> str:
    """An extra variable with the lab's topology, changed where it shows and does no harm."""
    topology = yaml.safe_load((ROOT / "inventories/topologies/lab-1p1d.yml").read_text())
    topology["engine"]["max_num_seqs"] = sequences
    file = folder / f"{sequences}.json"
    file.write_text(json.dumps({"llm_serve_topology": topology}))
    return f"@{file}"


# What is done, and how many of the engines that ran before must still run. The load goes on in between.
Case = Callable[[Path], object]
CASES: dict[str, tuple[str, Case]] = {
    "grow": ("1P1D to 1P2D", lambda _: splitrail("rebalance", "--to", "1P2D")),
    "shrink": ("1P2D to 1P1D", lambda _: splitrail("rebalance", "--to", "1P1D")),
    "canary": (
        "canary started, 20 %",
        lambda folder: splitrail("canary", "start", "--weight", "20", "-e", changed_topology(folder, 31)),
    ),
    "promote": ("canary promoted", lambda _: splitrail("canary", "promote")),
    "rollback": ("rollback", lambda _: splitrail("rollback")),
    "canary-2": (
        "another canary, 20 %",
        lambda folder: splitrail("canary", "start", "--weight", "20", "-e", changed_topology(folder, 30)),
    ),
    "abort": ("canary rolled back", lambda _: splitrail("canary", "abort")),
}
COLUMNS = ["change", "s", "requests", "failed", "wrong", "longest s", "engines kept"]
# Engines that are taken away on purpose.
LEAVE = {"shrink": 1, "promote": 2, "rollback": 2, "abort": 2}


def main() -> int:
    """Run the cases named on the command line, or all."""
    with client() as who:
        load = Load([ask(who, number) for number in range(PROMPTS)])
    threads = [threading.Thread(target=load.send, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    good = True
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    try:
        with tempfile.TemporaryDirectory() as name:
            before = actors()
            for case in sys.argv[1:] or list(CASES):
                title, change = CASES[case]
                began = time.monotonic()
                change(Path(name))
                seconds = time.monotonic() - began
                after = actors()
                # With the time of the look: what is in flight when the command ends is counted too.
                row = [one for one in load.ended if one[0] >= began]
                had, have = (set().union(*one.values()) for one in (before, after))
                must = len(had) - LEAVE.get(case, 0)
                good &= len(had & have) == must
                say(title, seconds, row, f"{len(had & have)} of {must}")
                before = after
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()
        say("in all, with the looks in between", 0, load.ended, "")
    for text in sorted({what for _, _, what in load.ended if what not in {"", "wrong"}}):
        sys.stderr.write(f"{text}\n")
    return 0 if good and not any(what for _, _, what in load.ended) else 1


def meanwhile(steps: dict[str, Callable[[], object]], load: Load, *, may_fail: Collection[str] = ()) -> int:
    """Take steps under a load and print the table of what came of it, with what a step returned as text.

    Exit code 0 when no request failed, but for the steps in which they may.
    """
    threads = [threading.Thread(target=load.send, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sys.stdout.write(
        "| what | s | requests | failed | wrong | longest s | seen |\n|---|---|---|---|---|---|---|\n"
    )
    bad = False
    try:
        for title, step in steps.items():
            began = time.monotonic()
            seen = step()
            row = [one for one in load.ended if one[0] >= began]
            say(title, time.monotonic() - began, row, seen if isinstance(seen, str) else "")
            bad |= title not in may_fail and any(what for _, _, what in row)
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()
        say("in all", 0, load.ended, "")
    for text in sorted({what for _, _, what in load.ended if what not in {"", "wrong"}}):
        sys.stderr.write(f"{text}\n")
    return int(bad)


def say(title: str, seconds: float, row: list[tuple[float, float, str]], kept: str) -> None:
    """One line of the table."""
    wrong = sum(what == "wrong" for _, _, what in row)
    failed = sum(bool(what) for _, _, what in row) - wrong
    longest = max((took for _, took, _ in row), default=0.0)
    took = f"{seconds:.0f}" if seconds else ""
    sys.stdout.write(f"| {title} | {took} | {len(row)} | {failed} | {wrong} | {longest:.1f} | {kept} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
