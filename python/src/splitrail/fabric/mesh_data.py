"""What a mesh is made of: nodes and rails that go in, readings that come out, and the record of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitrail.fabric.schedule import Pair, pairs_of, rounds, sample
from splitrail.verdict import write_json

RESULT = "mesh/mesh.json"
JOURNAL = "mesh/journal.jsonl"


class MeshError(Exception):
    """A mesh cannot be measured, or its record not be read; the message says why."""


class RailPort(BaseModel):
    """A node's port on a rail, as its node checks found it."""

    model_config = ConfigDict(extra="forbid")

    rail: int
    name: str
    device: str = ""
    gid_index: int | None = None
    ip: str = ""
    gateway: str = ""
    rate_gbps: float = 0.0
    soft: bool = False  # soft-RoCE: its rate is a figure of speech
    gpu: int | None = None
    dmabuf: bool = False
    firmware: str = ""
    board: str = ""
    faults: list[str] = Field(default_factory=list)  # failed node checks without which no test can be made
    doubts: list[str] = Field(default_factory=list)  # other failed ones

    @property
    def memory(self) -> str:
        return "host" if self.gpu is None else "gpu"


class Node(BaseModel):
    """A node: where the others reach its tests, and its rails."""

    model_config = ConfigDict(extra="forbid")

    name: str
    address: str
    boot_id: str = ""
    rails: list[RailPort]

    def identity(self) -> str:
        """Changes with a reboot, a device or its firmware, and then nothing measured before counts."""
        ports = [(p.rail, p.device, p.gid_index, p.ip, p.firmware, p.gpu, p.dmabuf) for p in self.rails]
        return hashlib.sha256(json.dumps([self.boot_id, ports]).encode()).hexdigest()[:16]

    def port(self, rail: int) -> RailPort | None:
        return next((port for port in self.rails if port.rail == rail), None)


class Settings(BaseModel):
    """How a mesh is measured; every key is a variable of the role rdma_fabric."""

    model_config = ConfigDict(extra="forbid")

    mesh: Literal["full", "sample"] = "full"
    sample: int = Field(default=4, ge=1)
    rails_at_once: bool = True
    size: int = Field(default=1 << 20, ge=1)
    seconds: int = Field(default=1, ge=1)
    depth: int = Field(default=128, ge=1)
    qps: int = Field(default=4, ge=1)
    qp_timeout: int = Field(default=14, ge=1, le=31)  # 4.096 us * 2^N until what got no answer is sent again
    latency_iterations: int = Field(default=1000, ge=5)
    tclass: int | None = None
    port: int = 18515
    retest: bool = False
    timeout_s: float = Field(default=15.0, gt=0)

    def plan(self, nodes: Iterable[str]) -> list[list[Pair]]:
        """The rounds to measure."""
        names = sorted(nodes)
        return rounds(names) if self.mesh == "full" else sample(names, self.sample)


class Reading(BaseModel):
    """One rail from one node to another: what went through, or why nothing did."""

    model_config = ConfigDict(extra="forbid")

    source: str
    target: str
    rail: int
    gbps: float | None = None
    us: float | None = None
    mtu: int = 0
    bytes: int = 0
    source_counters: dict[str, int] = Field(default_factory=dict)  # growth while the bandwidth was measured
    target_counters: dict[str, int] = Field(default_factory=dict)
    error: str = ""
    skipped: str = ""  # why it was not tested
    before: str = ""  # what was found at first, where it was measured once more

    def __str__(self) -> str:
        return f"rail{self.rail}, {self.source} -> {self.target}"

    @property
    def pair(self) -> frozenset[str]:
        return frozenset((self.source, self.target))


class Wiring(BaseModel):
    """What a node heard on its rails."""

    model_config = ConfigDict(extra="forbid")

    heard: dict[str, list[tuple[str, int]]] = Field(default_factory=dict)
    answered: dict[str, list[str]] = Field(default_factory=dict)
    errors: dict[str, str] = Field(default_factory=dict)


class Result(BaseModel):
    """``mesh/mesh.json`` of a run record: all that was measured, and enough to judge and draw it again."""

    model_config = ConfigDict(extra="forbid")

    cluster: str
    at: str
    seconds: float
    settings: Settings
    nodes: list[Node]
    readings: list[Reading]
    wiring: dict[str, Wiring] = Field(default_factory=dict)
    set_aside: dict[str, str] = Field(default_factory=dict)  # node: why
    rounds: int = 0
    own_thresholds: list[dict[str, Any]] = Field(default_factory=list)  # of the inventory, to judge it again
    resumed_from: str = ""
    reused_pairs: int = 0

    def unplanned(self) -> int:
        """Pairs that a full mesh has and this one does not."""
        names = [node.name for node in self.nodes]
        return len(names) * (len(names) - 1) // 2 - len(pairs_of(self.settings.plan(names)))

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / RESULT, self.model_dump(mode="json"))

    @classmethod
    def load(cls, run_dir: Path) -> Self:
        """Raises MeshError naming the file."""
        path = run_dir / RESULT
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise MeshError(f"{path}: not the record of a mesh: {error}") from error


class Journal:
    """A line a measured pair, written as it is measured, so that a run that breaks off is not lost."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / JOURNAL

    def begin(self, settings: Settings, nodes: Iterable[Node]) -> None:
        self._write(
            {
                "settings": settings.model_dump(mode="json"),
                "nodes": {node.name: node.identity() for node in nodes},
            }
        )

    def add(self, readings: Iterable[Reading]) -> None:
        """A pair's readings in both directions."""
        self._write({"readings": [reading.model_dump(mode="json") for reading in readings]})

    def _write(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def recall(self, settings: Settings, nodes: Iterable[Node]) -> list[Reading]:
        """The readings that still hold for these nodes and settings.

        A pair counts when both of its nodes are as they were. Raises MeshError when the journal is of other
        nodes or settings, or cannot be read; a last line cut short by the break is passed over.
        """
        try:
            first, *rest = self.path.read_text(encoding="utf-8").splitlines() or [""]
            head = json.loads(first)
            then, was = head["nodes"], head["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MeshError(f"{self.path}: no journal to go on from: {error}") from error
        now = {node.name: node.identity() for node in nodes}
        if then.keys() != now.keys():
            raise MeshError(
                f"{self.path}: it is of other nodes: {', '.join(sorted(then.keys() ^ now.keys()))}"
            )
        # A full mesh may go on from a sample, and the other way round.
        if {**was, "mesh": "", "sample": 1} != {**settings.model_dump(mode="json"), "mesh": "", "sample": 1}:
            raise MeshError(f"{self.path}: it was measured with other settings")
        same = {name for name in now if then[name] == now[name]}
        found: list[Reading] = []
        for line in rest:
            try:
                found += [Reading.model_validate(raw) for raw in json.loads(line)["readings"]]
            except (ValueError, KeyError, TypeError):
                continue
        return [reading for reading in found if reading.pair <= same]
