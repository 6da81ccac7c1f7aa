"""A fabric of real agents on this machine, over a perftest that carries what a test says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitrail.fabric.drive import AGENT, Agent, ProcessChannel, boot_command
from splitrail.fabric.mesh import Mesh
from splitrail.fabric.mesh_data import Journal, Node, RailPort, Result, Settings

FAKE = Path(__file__).parent / "perftest.py"


class Fabric:
    """Nodes a, b, c, ... of this machine; device ``a0`` is rail 0 of node a."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan: dict[str, dict[str, Any]] = {}
        self.channels: dict[str, ProcessChannel] = {}
        tools = folder / "bin"
        tools.mkdir()
        for name in ("ib_write_bw", "ib_write_lat"):
            # No copy: what was just written may be refused as busy, and a real tool be found instead.
            (tools / name).symlink_to(FAKE)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_FABRIC": str(folder / "plan.json"),
            "FAKE_ROOT": str(folder / "root"),
        }

    def nodes(self, names: str, rails: int = 2, **more: Any) -> list[Node]:
        made = []
        for name in names:
            ports = []
            for rail in range(rails):
                device = f"{name}{rail}"
                counters = self.folder / "root/sys/class/infiniband" / device / "ports/1/hw_counters"
                counters.mkdir(parents=True, exist_ok=True)
                for counter in ("sent_pkts", "rcvd_seq_err", "out_of_seq_request"):
                    (counters / counter).write_text("0")
                ports.append(
                    RailPort(
                        **{
                            **{"rail": rail, "name": f"rail{rail}", "device": device, "gid_index": 1},
                            **{"ip": f"10.0.{rail}.1", "soft": True},
                            **more,
                        }
                    )
                )
            made.append(Node(name=name, address="127.0.0.1", boot_id="boot", rails=ports))
        return made

    def open(self, node: Node) -> Agent:
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        command = [sys.executable, *boot_command(AGENT.stat().st_size, sudo=False)[1:]]
        before, os.environ["PATH"] = os.environ["PATH"], self.environment["PATH"]
        try:
            for key in ("FAKE_FABRIC", "FAKE_ROOT"):
                os.environ[key] = self.environment[key]
            channel = ProcessChannel(command)
        finally:
            os.environ["PATH"] = before
        self.channels[node.name] = channel
        agent = Agent(node.name, channel)
        agent.ask("hello", 20, root=self.environment["FAKE_ROOT"])
        return agent

    def mesh(self, nodes: list[Node], run: str = "run", **settings: Any) -> Mesh:
        given = Settings(**{"timeout_s": 15, "port": 23000, **settings})
        return Mesh(nodes, given, self.open, Journal(self.folder / run))

    def measure(self, nodes: list[Node], **settings: Any) -> Result:
        return self.mesh(nodes, **settings).run("test")


@pytest.fixture
def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fabric]:
    # Nobody is on the wire here, so nothing would be heard however long one listens.
    monkeypatch.setattr("splitrail.fabric.mesh.WIRING_S", 0.1)
    yield Fabric(tmp_path)
