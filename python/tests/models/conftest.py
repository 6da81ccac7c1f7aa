"""A model on a hub, and agents of the nodes that bring it, all on addresses of the loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

import splitrail
from splitrail.ansible.module_utils.splitrail_models.agent import Agent, GiveUp, Job
from splitrail.ansible.module_utils.splitrail_models.manifest import Manifest
from splitrail.ansible.module_utils.splitrail_models.sources import Hub as HubSource
from tests.models.hub import Hub

# Where Ansible puts them on a node.
UTILS = str(Path(splitrail.__file__).parent / "ansible/module_utils")
if UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(UTILS)

TOKEN = 64 * "7"
HUB_TOKEN = "hub-token"  # noqa: S105  of a hub that lives as long as a test
CHUNK_MIB = 1 / 64  # 16 KiB
PATTERNS = ("*.json", "*.safetensors")


def free_port() -> int:
    """A port that is free on every address of the loopback that the tests use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's files at the source: two large, two small, one of them empty, and one that nobody wants."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in (1, 2):
        content = b"".join(bytes([number, each % 251]) * 512 for each in range(400 + number))
        (folder / f"model-{number}.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    (folder / "empty.json").touch()
    (folder / "weights.pth").write_bytes(bytes(5000))
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    """A hub that serves it."""
    server = Hub(model, token=HUB_TOKEN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Fleet:
    """Nodes n0, n1, ... on 127.0.0.2, 127.0.0.3, ... with a folder each."""

    def __init__(self, root: Path, hub: Hub, size: int) -> None:
        self.root, self.hub, self.port = root, hub, free_port()
        self.nodes = {f"n{number}": f"127.0.0.{number + 2}" for number in range(size)}
        self.source = HubSource(hub.url, hub.repository, hub.revision, token=hub.token)
        self.manifest: Manifest = self.source.manifest(PATTERNS)
        self.agents: dict[str, Agent] = {}
        self.errors: dict[str, str] = {}

    def folder(self, name: str) -> Path:
        """Where a node has its model."""
        return self.root / name / "models/tiny"

    def job(self, name: str, **other: Any) -> Job:
        """What a node is to do."""
        said: dict[str, Any] = {
            "node": name,
            "nodes": self.nodes,
            "port": self.port,
            "token": TOKEN,
            "folder": str(self.folder(name)),
            "manifest": self.manifest.as_dict(),
            "status": str(self.root / name / "status.json"),
            "fetchers": list(self.nodes),
            "source": {
                "kind": "hub",
                "url": self.hub.url,
                "repository": self.hub.repository,
                "revision": self.hub.revision,
            },
            "source_token": self.hub.token,
            "chunk_mib": CHUNK_MIB,
            "streams": 2,
            "stall_s": 20,
            "gone_s": 0.5,
            "stuck_s": 2,
        }
        return Job(**{**said, **other})

    def start(self, name: str, **other: Any) -> Agent:
        """An agent that is ready to run; its server listens."""
        self.folder(name).parent.mkdir(parents=True, exist_ok=True)
        agent = self.agents[name] = Agent(self.job(name, **other))
        return agent

    def run(self, *names: str, **other: Any) -> None:
        """Run the agents of these nodes, or of all, until each is done or has given up."""
        for name in names or self.nodes:
            if name not in self.agents:
                self.start(name, **other)
        threads = [
            threading.Thread(target=self._run, args=(name,), daemon=True) for name in names or self.nodes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, name: str) -> None:
        try:
            self.agents[name].run()
        except GiveUp as error:
            self.errors[name] = str(error)

    def end(self, *names: str) -> None:
        """End agents, and forget them."""
        ended = [self.agents.pop(name) for name in names or list(self.agents)]
        # One that never ran serves nothing that could be shut down. Each takes half a second: all at once.
        threads = [
            threading.Thread(target=agent.server.shutdown)
            for agent in ended
            if agent.status.state != "starting"
        ]
        for agent in ended:
            agent.stopping.set()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for agent in ended:
            agent.server.server_close()
        self.errors.clear()

    def is_right(self, name: str) -> bool:
        """Whether the node has every wanted file, byte for byte."""
        return all(
            (self.folder(name) / file.path).read_bytes() == (self.hub.folder / file.path).read_bytes()
            for file in self.manifest.files
        )


@pytest.fixture
def fleet(tmp_path: Path, hub: Hub) -> Iterator[Fleet]:
    """Four nodes and a hub."""
    made = Fleet(tmp_path / "nodes", hub, 4)
    yield made
    made.end()
