"""What any kind of node can do; `container` is the first kind, others come beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from splitrail.lab.spec import Node


class NodeKind(ABC):
    """Makes, starts and removes the nodes of one lab. Calls for different nodes may run at the same time."""

    #: Programs that must be on this host, each with the Debian and Ubuntu package that brings it.
    tools: ClassVar[Mapping[str, str]]

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
    def console(self, name: str, lines: int) -> list[str]:
        """The last lines of the node's console."""
