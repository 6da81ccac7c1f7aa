#!/usr/bin/env python3
"""Bring a model to many nodes, together and each alone, from a source with a limited rate, in one run.

    .venv/bin/python python/benchmarks/model_fanout.py [--nodes 8] [--mib 64] [--rate 16]

A node is a process of the agent that runs on real ones, on its own address of the loopback (127.0.1.N), with
a folder of its own below a temporary one. The source is the tests' stand-in for a hub, another process, which
gives RATE MB/s to all askers together, as a site's uplink does. First all nodes bring the model together,
then each alone from the same source at the same time. Then it is brought together again, and in the
middle a node is killed with SIGKILL and started anew: a sender and a receiver at once. Every file of every
node is compared with the source's. Prints one JSON document; exit code 0 when every node was right each time.

Network and disk of this machine carry all nodes: the seconds are upper bounds; bytes and their ratio are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UTILS = ROOT / "src/splitrail/ansible/module_utils"
sys.path[:0] = [str(UTILS), str(ROOT)]

from splitrail_models.manifest import Manifest  # noqa: E402  # isort: skip
from splitrail_models.sources import Hub  # noqa: E402  # isort: skip

REPOSITORY, REVISION = "owner/model", 40 * "a"
PATTERNS = ("*.json", "*.safetensors")
MIB = 1 << 20


class Bench:
    """The source, and one run after the other, each in a folder of its own."""

    def __init__(
        self, work: Path, *, nodes: int, mib: int, rate: float, chunk_mib: float, streams: int
    ) -> None:
        self.work, self.chunk_mib, self.streams = work, chunk_mib, streams
        self.nodes = {f"n{number:03}": f"127.0.1.{number + 1}" for number in range(nodes)}
        self.source = work / "source"
        self.source.mkdir()
        files = 4
        for number in range(files):
            content = random.Random(number).randbytes(mib * MIB // files)  # noqa: S311  weights, no secret
            (self.source / f"model-{number}.safetensors").write_bytes(content)
        (self.source / "config.json").write_text("{}")
        hub = ROOT / "tests/models/hub.py"
        self._hub = subprocess.Popen(
            [
                sys.executable,
                str(hub),
                str(self.source),
                f"--repository={REPOSITORY}",
                f"--revision={REVISION}",
                f"--rate={rate}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._hub.stdout is not None  # noqa: S101  for the type checker: it is a pipe
        self.url = f"http://127.0.0.1:{int(self._hub.stdout.readline())}"
        self.manifest: Manifest = Hub(self.url, REPOSITORY, REVISION).manifest(PATTERNS)

    def close(self) -> None:
        """End the source."""
        self._hub.terminate()
        self._hub.wait()

    def given(self) -> int:
        """Bytes that the source has given since it began."""
        with urllib.request.urlopen(f"{self.url}/counters") as answer:  # noqa: S310  our own
            return int(json.load(answer)["bytes"])

    def agent(self, run: str, node: str, together: bool, port: int) -> subprocess.Popen[bytes]:
        """Start a node's agent."""
        folder = self.work / run / node
        folder.mkdir(parents=True, exist_ok=True)
        job = {
            "node": node,
            "nodes": self.nodes if together else {node: self.nodes[node]},
            "port": port,
            "token": 40 * "t",
            "folder": str(folder / "model"),
            "manifest": self.manifest.as_dict(),
            "status": str(folder / "status.json"),
            "fetchers": list(self.nodes) if together else [node],
            "source": {"kind": "hub", "url": self.url, "repository": REPOSITORY, "revision": REVISION},
            "chunk_mib": self.chunk_mib,
            "streams": self.streams,
        }
        path = folder / "job.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(job))
        return subprocess.Popen(
            [sys.executable, "-m", "splitrail_models.agent", str(path)],
            env={**os.environ, "PYTHONPATH": str(UTILS), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def status(self, run: str, node: str) -> dict[str, Any]:
        """What a node's agent says of itself."""
        try:
            found: dict[str, Any] = json.loads((self.work / run / node / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def right(self, run: str, node: str) -> bool:
        """Whether a node has every byte."""

        def digest(path: Path) -> str:
            return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

        folder = self.work / run / node / "model"
        return all(
            digest(folder / file.path) == digest(self.source / file.path) for file in self.manifest.files
        )

    def bring(self, run: str, *, together: bool, kill: bool = False) -> dict[str, Any]:
        """One run. seconds: from the first agent's start to the last one's whole model."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port: int = server.getsockname()[1]
        before, began, killed = self.given(), time.monotonic(), ""
        agents = {node: self.agent(run, node, together, port) for node in self.nodes}
        lost = 0
        try:
            while True:
                states = {node: self.status(run, node) for node in self.nodes}
                victim = list(self.nodes)[1]
                seen = states[victim]
                if kill and not killed and seen.get("have", 0) > seen.get("chunks", 0) / 2 > 0:
                    agents[victim].kill()
                    agents[victim].wait()
                    journal = self.work / run / victim / "model.part/.splitrail-journal"
                    had = len(journal.read_text().splitlines()) - 1
                    (self.work / run / victim / "status.json").unlink()
                    agents[victim], killed = self.agent(run, victim, together, port), victim
                elif all(state.get("state") in ("done", "failed") for state in states.values()):
                    break
                time.sleep(0.1)
            seconds = time.monotonic() - began
            if killed:
                again = self.status(run, killed)
                lost = (
                    again["from_source"] + again["from_peers"] - (self.manifest.size - had * self.chunk_bytes)
                )
        finally:
            for agent in agents.values():
                agent.terminate()
            for agent in agents.values():
                agent.wait()
        found: dict[str, Any] = {
            "seconds": round(seconds, 2),
            "source_bytes_over_model": round((self.given() - before) / self.manifest.size, 3),
            "most_given_by_a_node_over_model": round(
                max(self.status(run, node)["served"] for node in self.nodes) / self.manifest.size, 3
            ),
            "all_right": all(self.right(run, node) for node in self.nodes),
        }
        if killed:
            found |= {"killed": killed, "taken_again_mib": round(max(0, lost) / MIB, 2)}
        return found

    @property
    def chunk_bytes(self) -> int:
        """Length of a chunk."""
        return int(self.chunk_mib * MIB)


def main() -> int:
    """Make the three runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--mib", type=int, default=64, help="size of the model")
    parser.add_argument("--rate", type=float, default=16, help="of the source, in MB/s")
    parser.add_argument("--chunk-mib", type=float, default=1)
    parser.add_argument("--streams", type=int, default=2)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="model-fanout-") as work:
        bench = Bench(Path(work), **vars(said))
        try:
            found: dict[str, Any] = {**vars(said)}
            found["together"] = bench.bring("together", together=True)
            found["alone"] = bench.bring("alone", together=False)
            found["killed"] = bench.bring("killed", together=True, kill=True)
        finally:
            bench.close()
    found["alone_over_together"] = round(found["alone"]["seconds"] / found["together"]["seconds"], 2)
    print(json.dumps(found, indent=2))  # noqa: T201
    return 0 if all(found[run]["all_right"] for run in ("together", "alone", "killed")) else 1


if __name__ == "__main__":
    sys.exit(main())
