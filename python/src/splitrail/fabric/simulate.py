"""A fleet that is not there: the real driver over agents that answer at once or after a given time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from splitrail.fabric.drive import AGENT, Agent, ProcessChannel
from splitrail.fabric.mesh import Mesh
from splitrail.fabric.mesh_data import Journal, Node, RailPort, Result, Settings
from splitrail.fabric.schedule import rounds

# Speaks as agent.py does. It takes the agent's text and does not run it.
FAKE = """import json, os, sys, time
size, link_s = int(sys.argv[1]), float(sys.argv[2])
while size: size -= len(os.read(0, size))
for line in sys.stdin:
    said = json.loads(line)
    rails = [str(test["rail"]) for test in said.get("tests", [])]
    ok = {}
    if said["do"] == "hello": ok = {"tools": ["ib_write_bw", "ib_write_lat"], "flags": []}
    if said["do"] == "wiring": ok = {"heard": {}, "answered": {}, "errors": {}}
    if said["do"] == "serve": ok = {"ports": {rail: 18515 for rail in rails}, "errors": {}}
    if said["do"] == "run":
        time.sleep(link_s)
        bw = said["tests"][0]["kind"] == "bw"
        figures = {"mtu": 4096, "bytes": 49000000000, **({"gbps": 392.0} if bw else {"us": 2.1})}
        ok = {rail: {**figures, "counters": {"port_xmit_data": 12400000000}} for rail in rails}
    print(json.dumps({"id": said["id"], "ok": ok}), flush=True)
"""
LEGS = 4  # bandwidth and latency, in two directions


@dataclass(frozen=True)
class Timing:
    """How long a simulated mesh took."""

    result: Result
    started_s: float  # until all agents answered
    rounds_s: tuple[float, ...]  # each round


def nodes(count: int, rails: int) -> list[Node]:
    """Nodes that pass every check."""
    ports = [
        RailPort(rail=rail, name=f"rail{rail}", device=f"mlx5_{rail}", gid_index=3, rate_gbps=400)
        for rail in range(rails)
    ]
    return [Node(name=f"n{number:03}", address="127.0.0.1", rails=ports) for number in range(count)]


def simulate(count: int, rails: int, link_s: float, *, only_rounds: int | None = None) -> Timing:
    """Measure a fleet whose every pair takes ``link_s`` seconds, by the real driver and real processes.

    With ``only_rounds`` no more rounds than that are measured.
    """
    settings = Settings(mesh="sample", sample=only_rounds) if only_rounds else Settings()
    command = [sys.executable, "-S", "-c", FAKE, str(AGENT.stat().st_size), str(link_s / LEGS)]
    marks: list[float] = []

    def mark(text: str) -> None:
        if text.startswith("round"):
            marks.append(monotonic())

    with TemporaryDirectory() as folder:
        mesh = Mesh(
            nodes(count, rails),
            settings,
            lambda node: Agent(node.name, ProcessChannel(command)),
            Journal(Path(folder)),
            say=mark,
            measured=lambda: marks.append(monotonic()),
        )
        started = monotonic()
        result = mesh.run("simulated")
    spans = tuple(after - before for before, after in pairwise(marks))
    return Timing(result, marks[0] - started, spans)


def walked_s(count: int, rails: int, link_s: float) -> float:
    """What walking the pairs takes: one pair after the other, one rail after the other."""
    return count * (count - 1) / 2 * rails * link_s


def least_s(count: int, link_s: float) -> float:
    """What the rounds take if nothing but the links takes time; rails run side by side."""
    return len(rounds([str(number) for number in range(count)])) * link_s
