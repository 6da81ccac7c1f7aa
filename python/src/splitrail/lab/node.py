"""What any kind of node can do."""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from splitrail.lab.spec import Node


def machine(lab: str, node: str) -> str:
    """The machine's name: unique on this host, since neither part holds a dot."""
    return f"{lab}.{node}"


def machine_id(lab: str, node: str) -> str:
    """The node's /etc/machine-id: from names, so that a node that is installed anew keeps it."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{node}.{lab}.splitrail").hex


def last_lines(log: Path, lines: int) -> list[str]:
    """The last lines of a console's log that hold something, without what only a terminal understands."""
    text = log.read_text(errors="replace") if log.exists() else ""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()].|[\r\x07]", "", text)
    return [line for line in plain.splitlines() if line.strip()][-lines:]


class NodeKind(ABC):
    """Makes, starts and removes the nodes of one lab. Calls for different nodes may run at the same time."""

    #: Programs that must be on this host, each with the Debian and Ubuntu package that brings it.
    tools: ClassVar[Mapping[str, str]]
    #: What prints, on a node, how many KiB its processes take.
    memory: ClassVar[str]

    @abstractmethod
    def prepare(self) -> None:
        """Make what all nodes share, such as a root file system. Raises LabError."""

    @abstractmethod
    def install(self, node: Node) -> str | None:
        """Make the node's disk unless it has one; heal what a killed run left.

        Returns what the person should know (such as settings that changed since), or None. Raises LabError.
        """

    @abstractmethod
    def host_key(self, name: str) -> str | None:
        """The installed node's public SSH host key; None when there is no such node."""

    @abstractmethod
    def is_on(self, name: str) -> bool:
        """Whether the node has power."""

    @abstractmethod
    def power_on(self, node: Node) -> None:
        """Start an installed node that is off, or heal the connections of one that is on. Raises LabError."""

    @abstractmethod
    def power_off(self, name: str) -> None:
        """Stop the node at once, as if its plug were pulled; harmless when it is off. Raises LabError."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Power off and remove the node with its disk; harmless when half of it is gone. Raises LabError."""

    @abstractmethod
    def link(self, node: Node, rail: int | None, action: str, value: float | None) -> dict[int, str]:
        """Inject or heal a fault of the cables of `rail` (all: None); returns every rail's state in words.

        Raises LabError, where a kind has no rails.
        """

    @abstractmethod
    def snapshots(self, node: Node) -> list[tuple[str, float]]:
        """The node's snapshots, oldest first: name, and seconds since the epoch. Raises LabError."""

    @abstractmethod
    def save(self, node: Node, snapshot: str) -> None:
        """Keep the running node as it is under the name `snapshot`. Raises LabError."""

    @abstractmethod
    def restore(self, node: Node, snapshot: str) -> None:
        """Make the node what it was at `snapshot`; its clock is behind then. Raises LabError."""

    @abstractmethod
    def console(self, name: str, lines: int) -> list[str]:
        """The last lines of the node's console."""
