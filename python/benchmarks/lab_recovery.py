"""Measure how the lab's endpoint comes back by itself after something was killed.

usage: python python/benchmarks/lab_recovery.py [CASE ...]     cases: see CASES below

Sends one streamed request after another to the endpoint of ``inventories/lab``, kills the named thing
(SIGKILL of the engine's or the replica's process, or a crash of the node: a reboot without a shutdown),
and goes on asking until twenty answers in a row were right. Prints one JSON line a case: ``seconds``
from the kill to the first right answer after which none failed, how many requests ``failed`` or were
answered ``wrong`` in between, and ``longest_s``, the longest that a right answer took: a request may
wait for an engine to come back. Answers are compared with the ones before the kill. Nobody helps: the
script only asks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/lab"
GIVE_UP_S = 600
ENOUGH = 20
TOKENS = 16
CASES = {
    "decode-engine": ("lab-decode", "pkill -KILL -f ^VLLM::Worker"),
    "prefill-engine": ("lab-prefill", "pkill -KILL -f ^VLLM::Worker"),
    "decode-replica": ("lab-decode", "pkill -KILL -f ray::ServeReplica:llm-.:Decode"),
    "prefill-replica": ("lab-prefill", "pkill -KILL -f ray::ServeReplica:llm-.:Prefill"),
    "decode-node": ("lab-decode", "reboot -ff"),
    "prefill-node": ("lab-prefill", "reboot -ff"),
    "head-node": ("lab-head", "reboot -ff"),
}


def endpoint() -> str:
    """Address of the lab's OpenAI-compatible endpoint."""
    hosts = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return f"http://{hosts['all']['children']['head']['hosts']['lab-head']['ansible_host']}:8000"


def ask(client: httpx.Client, number: int) -> list[int]:
    """One streamed request of 16 tokens with one of four prompts; returns the tokens.

    Raises httpx.HTTPError, or ValueError on an answer that is an error or not whole.
    """
    request = {
        "model": "lab-qwen3",
        "messages": [{"role": "user", "content": f"count from {number % 4} " + "upwards and on " * 40}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    tokens: list[int] = []
    with client.stream("POST", "/v1/chat/completions", json=request) as answer:
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


def measure(case: str) -> dict[str, object]:
    """Kill one thing and watch the endpoint until it is steady again."""
    node, command = CASES[case]
    key = (ROOT / ".secrets/lab/api_key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=endpoint(), headers=headers, timeout=60, trust_env=False) as client:
        right = [ask(client, number) for number in range(4)]
        subprocess.run(
            [sys.executable, "-m", "splitrail", "lab", "ssh", "-i", str(INVENTORY), node, "--",
             f"sudo systemd-run --quiet --collect {command}"],
            check=True,
        )  # fmt: skip
        killed = time.monotonic()
        failed = wrong = in_a_row = number = 0
        back = longest = 0.0
        while in_a_row < ENOUGH:
            if time.monotonic() - killed > GIVE_UP_S:
                return {"case": case, "recovered": False, "failed": failed, "wrong": wrong}
            number += 1
            asked = time.monotonic()
            try:
                same = ask(client, number) == right[number % 4]
            except (httpx.HTTPError, ValueError):
                failed, in_a_row = failed + 1, 0
                time.sleep(0.5)  # the pace of a client that tries again
                continue
            answered = time.monotonic()
            if not same:
                wrong, in_a_row = wrong + 1, 0
                continue
            in_a_row += 1
            longest = max(longest, answered - asked)
            back = back if in_a_row > 1 else answered - killed
        return {
            "case": case,
            "recovered": True,
            "seconds": round(back, 1),
            "failed": failed,
            "wrong": wrong,
            "longest_s": round(longest, 1),
        }


def main() -> int:
    """Run the cases named on the command line, or all."""
    results = []
    for case in sys.argv[1:] or list(CASES):
        results.append(measure(case))
        sys.stdout.write(json.dumps(results[-1]) + "\n")
        sys.stdout.flush()
    return 0 if all(result["recovered"] and not result["wrong"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
