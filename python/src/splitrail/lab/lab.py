"""The verbs of the lab, in terms of its parts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from splitrail.lab import network, ssh
from splitrail.lab.container import Containers
from splitrail.lab.files import remove_tree
from splitrail.lab.node import NodeKind
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError, environment
from splitrail.lab.spec import Lab, Node
from splitrail.lab.state import State, cache, locked, prune
from splitrail.lab.vm import VirtualMachines

_KINDS: Mapping[str, type[Containers] | type[VirtualMachines]] = {
    "container": Containers,
    "vm": VirtualMachines,
}
# A restored node answers as soon as the host's network has found it again.
_RESTORED_SECONDS = 60.0
T = TypeVar("T")
R = TypeVar("R")

_READY = "systemctl is-system-running --wait; systemctl list-units --failed --plain --no-legend"
# One call tells all: systemd's state, seconds since boot, and then what the kind says of memory in KiB.
_FACTS = "systemctl is-system-running; ps -o etimes= -p 1; "


@dataclass(frozen=True)
class NodeStatus:
    """What `status` shows of a node; `seconds` since it booted, None like the rest when it is down."""

    name: str
    groups: tuple[str, ...]
    address: str
    state: str
    systemd: str | None = None
    seconds: int | None = None
    memory_mib: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the node is up and answers."""
        return self.state == "up"


class LabHost:
    """A lab on this host."""

    def __init__(self, lab: Lab, reporter: Reporter) -> None:
        self.lab = lab
        self._reporter = reporter
        self._state = State(lab.name)
        # A standing lab is of the kind that it was made as, whatever the inventory says now.
        standing = (self._state.record() or {"kind": lab.kind}).get("kind", "container")
        self._kind: NodeKind = _KINDS[standing](lab, self._state, reporter)

    def up(self, nodes: tuple[Node, ...]) -> None:
        """Make, heal and start `nodes`; return once each one is up. Raises LabError."""
        with locked(self.lab.name, self._reporter.say):
            self._require_tools()
            self._make(nodes)

    def reset(self, nodes: tuple[Node, ...]) -> None:
        """Install `nodes` anew and start them. Raises LabError."""
        with locked(self.lab.name, self._reporter.say):
            self._require_tools()
            self._each(nodes, lambda node: self._kind.remove(node.name))
            self._make(nodes)

    def power(self, action: str, node: Node) -> None:
        """`off`, `on` or `cycle` a node, hard. Raises LabError."""
        with locked(self.lab.name, self._reporter.say):
            self._require_tools()
            if node.name not in self._state.nodes():
                raise LabError(f"{node.name} is not installed; run `splitrail lab up {node.name}`")
            if action in ("off", "cycle"):
                self._kind.power_off(node.name)
            if action in ("on", "cycle"):
                self._make((node,))

    def link(self, node: Node, rail: int | None, action: str, value: float | None) -> dict[int, str]:
        """Inject or heal a fault of a cable; returns every rail's state in words. Raises LabError."""
        with locked(self.lab.name, self._reporter.say):
            return self._kind.link(node, rail, action, value)

    def snapshots(self, nodes: tuple[Node, ...]) -> dict[str, list[tuple[str, float]]]:
        """Each node's snapshots: name, and seconds since the epoch. Raises LabError."""
        return {node.name: self._kind.snapshots(node) for node in nodes}

    def save(self, nodes: tuple[Node, ...], snapshot: str) -> None:
        """Keep `nodes` as they are under the name `snapshot`. Raises LabError."""
        with (
            locked(self.lab.name, self._reporter.say),
            self._reporter.step(f"Saving {snapshot} of {', '.join(node.name for node in nodes)}"),
        ):
            self._each(nodes, lambda node: self._kind.save(node, snapshot))

    def restore(self, nodes: tuple[Node, ...], snapshot: str) -> None:
        """Make `nodes` what they were at `snapshot`, at the right time, and return once SSH answers."""
        with (
            locked(self.lab.name, self._reporter.say),
            self._reporter.step(f"Restoring {snapshot} of {', '.join(node.name for node in nodes)}"),
        ):
            self._each(nodes, lambda node: self._kind.restore(node, snapshot))
            self._each(nodes, self._set_clock)

    def _set_clock(self, node: Node) -> None:
        """Tell a restored node what time it is: it goes on at the time of its snapshot."""
        deadline = time.monotonic() + _RESTORED_SECONDS
        said = "no answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                # How late it is when the command runs there is at most as long as SSH takes.
                done = ssh.call(self.lab, node, f"sudo -n date --set=@{time.time():.3f}", seconds=left)
            except LabError as error:
                said = str(error)
                continue
            if done.returncode == 0:
                return
            said = done.stderr.strip()
            time.sleep(0.2)
        raise LabError(f"{node.name}: restored, but its clock could not be set over SSH: {said}")

    def down(self, *, purge: bool) -> None:
        """Remove the lab, and with `purge` the cache as well. Raises LabError."""
        with locked(self.lab.name, self._reporter.say) as lock:
            here = str(cache())
            users = [
                name for name in self._state.others() if (State(name).record() or {}).get("cache") == here
            ]
            if purge and users:
                raise LabError(
                    f"the cache {here} is in use by the lab {', '.join(users)}; take it down first"
                )
            names = {*self._state.nodes(), *(node.name for node in self.lab.nodes)}
            self._each(sorted(names), self._kind.remove)
            record = self._state.record() or {"key": str(self.lab.key), "bridge": self.lab.bridge}
            network.remove(self.lab.name, record["bridge"])
            ssh.remove(Path(record["key"]))
            with locked("host", self._reporter.say) as host_lock:
                remove_tree(self._state.folder)
                if not self._state.others():
                    network.restore_forward(self._saved_forward)
                    prune(self._state.root, self._state.root.parent)
                    host_lock.unlink()
            if purge:
                for source in {
                    Path("rootfs"),
                    Path("vm"),
                    *(mount.source for mount in self.lab.mounts if not mount.source.is_absolute()),
                }:
                    remove_tree(cache() / source)
                prune(cache(), cache())
            lock.unlink()
            prune(lock.parent, lock.parent)
        self._reporter.say(f"The lab {self.lab.name} is gone.")

    def status(self) -> list[NodeStatus]:
        """The state of every node; needs no root."""
        with ThreadPoolExecutor(len(self.lab.nodes)) as pool:
            return list(pool.map(self._status, self.lab.nodes))

    @property
    def _saved_forward(self) -> Path:
        return self._state.root / ".ip_forward"

    def _require_tools(self) -> None:
        path = environment()["PATH"]
        missing = {package for tool, package in self._kind.tools.items() if not shutil.which(tool, path=path)}
        if missing:
            raise LabError(f"this host lacks programs; run: apt-get install {' '.join(sorted(missing))}")

    def _make(self, nodes: tuple[Node, ...]) -> None:
        network.refuse_clash(self.lab)
        self._state.claim(self.lab)
        ssh.ensure_key(self.lab)
        self._kind.prepare()
        with locked("host", self._reporter.say):
            network.ensure(self.lab, self._saved_forward)
        for note in self._each(nodes, self._kind.install):
            if note:
                self._reporter.say(note)
        keys = {node: key for node in self.lab.nodes if (key := self._kind.host_key(node.name))}
        ssh.write_known_hosts(self.lab, keys)
        with ExitStack() as stack:
            if not all(self._kind.is_on(node.name) for node in nodes):
                stack.enter_context(self._reporter.step(f"Starting {', '.join(node.name for node in nodes)}"))
            self._each(nodes, self._kind.power_on)
            for node, failed in zip(nodes, self._each(nodes, self._wait), strict=True):
                say = f"{node.name} is up at {node.address}"
                self._reporter.say(f"{say}, degraded: {', '.join(failed)} failed" if failed else say)

    def _wait(self, node: Node) -> list[str]:
        """Wait until systemd in `node` has booted; returns the units that failed."""
        deadline = time.monotonic() + self.lab.boot_seconds
        said = "no answer yet"
        while (left := deadline - time.monotonic()) > 0 and self._kind.is_on(node.name):
            try:
                done = ssh.call(self.lab, node, _READY, seconds=left)
            except LabError as error:
                said = str(error)
                continue
            state, _, units = done.stdout.partition("\n")
            if state in ("running", "degraded"):
                return [line.split()[0] for line in units.splitlines() if line.strip()]
            said = done.stderr.strip() or f"systemd says `{state}`"
            time.sleep(0.2)
        why = (
            "it went down"
            if not self._kind.is_on(node.name)
            else f"not up after {self.lab.boot_seconds:.0f} s"
        )
        console = "\n    ".join(self._kind.console(node.name, 12)) or "(nothing)"
        raise LabError(
            f"{node.name}: {why} (SSH to {node.address}: {said}); "
            f"`splitrail lab reset {node.name}` installs it anew. Its console ends:\n    {console}"
        )

    def _status(self, node: Node) -> NodeStatus:
        known = {"name": node.name, "groups": node.groups, "address": str(node.address)}
        if not self._kind.is_on(node.name):
            return NodeStatus(**known, state="off" if node.name in self._state.nodes() else "absent")  # type: ignore[arg-type]
        try:
            done = ssh.call(self.lab, node, _FACTS + self._kind.memory, seconds=self.lab.status_seconds)
            systemd, seconds, memory = done.stdout.split()
        except (LabError, ValueError):
            return NodeStatus(**known, state="unreachable")  # type: ignore[arg-type]
        return NodeStatus(
            **known,  # type: ignore[arg-type]
            state="up" if systemd in ("running", "degraded") else "booting",
            systemd=systemd,
            seconds=int(seconds),
            memory_mib=int(memory) // 1024,
        )

    def _each(self, items: Iterable[T], job: Callable[[T], R]) -> list[R]:
        """Do `job` for all items at once; raises one LabError that holds every failure."""
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(job, item) for item in items]
        errors = [str(error) for future in futures if isinstance(error := future.exception(), LabError)]
        if errors:
            raise LabError("\n".join(errors))
        return [future.result() for future in futures]


def as_json(nodes: list[NodeStatus]) -> list[dict[str, object]]:
    """The status as plain data."""
    return [asdict(node) for node in nodes]
