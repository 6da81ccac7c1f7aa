"""`make lab`: the machines, the whole bring-up on them, and what to do with it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

from splitrail.lab.spec import load
from splitrail.make.steps import clock, environment

INVENTORY = "inventories/lab"
# The lab's ingress_port, and where its API key is kept.
_PORT = 8000
_KEY = ".secrets/lab/api_key"


def lab(root: Path, console: Console, began: float) -> int:
    """Make the lab's machines, run the whole site on them, and tell the endpoint; returns the exit code.

    ``began`` is when the person typed the command, in seconds since the epoch.
    """
    took = [("setup", time.time() - began)]
    code = 0
    for name, command in (
        ("machines", ["lab", "up", "-i", INVENTORY]),
        ("bring-up", ["up", "-i", INVENTORY]),
    ):
        start = time.monotonic()
        code = _foreground([sys.executable, "-m", "splitrail", *command], root)
        took.append((name, time.monotonic() - start))
        if code:
            break
    where = ", ".join(f"{name} {clock(seconds)}" for name, seconds in took)
    console.print(Text(f"\n{clock(sum(seconds for _, seconds in took))} in all: {where}"), soft_wrap=True)
    if code:
        console.print(Text("`make lab` goes on from here; `make lab-down` removes the lab."), soft_wrap=True)
        return code
    console.print(Text(_next_steps(root, _endpoint(root))), soft_wrap=True)
    return 0


def _foreground(argv: Sequence[str], root: Path) -> int:
    """Run a command that owns the terminal, Ctrl-C included; returns its exit code."""
    # Not SIG_IGN, which the command would inherit.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        with subprocess.Popen(argv, cwd=root, env=environment()) as child:
            # Whoever stops this process means the command.
            signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())
            return child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _endpoint(root: Path) -> str:
    head = next(node for node in load(root / INVENTORY).nodes if "head" in node.groups)
    return f"http://{head.address}:{_PORT}/v1"


def _next_steps(root: Path, endpoint: str) -> str:
    """What a newcomer can type now; the model's name is the one that the endpoint itself tells."""
    key = (root / _KEY).read_text(encoding="utf-8").strip()
    answer = httpx.get(f"{endpoint}/models", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    answer.raise_for_status()
    model = answer.json()["data"][0]["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Where does the KV cache go?"}],
        "max_tokens": 16,
    }
    data = shlex.quote(json.dumps(body))
    curl = (
        f"curl -s {endpoint}/chat/completions -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer $(cat {_KEY})" -d {data}'
    )
    return f"""
Serving {model} at {endpoint} (OpenAI-compatible; its weights are random, so its words are too). Try:

  {curl}

  . .venv/bin/activate    the command splitrail in this shell
  splitrail status        what was done last, and what is served now
  splitrail lab ssh lab-decode
  make lab-down           removes the lab; what it downloaded and built stays for the next
"""
