"""A fabric of real agents on this machine, over a perftest that carries what a test says."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from splitrail.fabric.drive import AGENT, Agent, ProcessChannel, boot_command
from splitrail.fabric.mesh import Mesh
from splitrail.fabric.mesh_data import Journal, Node, RailPort, Result, Settings

FAKE = Path(__file__).parent / "perftest.py"
# Each worker of the tests has its own: a mesh takes it for granted that no other one runs on its nodes.
PORT = 23000 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


class Fabric:
    """Nodes a, b, c, ... of this machine; device ``a0`` is rail 0 of node a."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = PORT
        self.plan: dict[str, dict[str, Any]] = {}
        self.channels: dict[str, ProcessChannel] = {}
        tools = folder / "bin"
        tools.mkdir()
        for name in ("ib_write_bw", "ib_write_lat"):
            # No copy: what was just written may be refused as busy, and a real tool be found instead.
            (tools / name).symlink_to(FAKE)

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
        # In one piece: another agent's test may read the plan at this moment.
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as plan:
            plan.write(json.dumps(self.plan))
        Path(plan.name).replace(self.folder / "plan.json")
        command = [sys.executable, *boot_command(AGENT.stat().st_size, sudo=False)[1:]]
        channel = ProcessChannel(command)
        self.channels[node.name] = channel
        agent = Agent(node.name, channel)
        agent.ask("hello", 20, root=str(self.folder / "root"))
        return agent

    def mesh(self, nodes: list[Node], run: str = "run", **settings: Any) -> Mesh:
        given = Settings(**{"timeout_s": 15, "port": self.port, **settings})
        return Mesh(nodes, given, self.open, Journal(self.folder / run))

    def measure(self, nodes: list[Node], **settings: Any) -> Result:
        return self.mesh(nodes, **settings).run("test")


@pytest.fixture
def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fabric:
    # Nobody is on the wire here, so nothing would be heard however long one listens.
    monkeypatch.setattr("splitrail.fabric.mesh.WIRING_S", 0.1)
    # For the whole test, not around each start: a mesh starts its agents side by side.
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_FABRIC", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_ROOT", str(tmp_path / "root"))
    return Fabric(tmp_path)
