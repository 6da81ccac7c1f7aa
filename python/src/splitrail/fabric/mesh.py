"""Measure every pair of nodes, round by round, and let no bad node take more than minutes."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from splitrail.fabric.drive import Agent, AgentGone, AgentRefused, DriveError
from splitrail.fabric.mesh_checks import crossed
from splitrail.fabric.mesh_data import Journal, MeshError, Node, Reading, Result, Settings, Wiring
from splitrail.fabric.schedule import Pair, pairs_of

# A node is set aside once it failed half of its pairs, and of two at least: one may be the other's fault.
ENOUGH = 2
SHARE = 0.5
WIRING_S = 3.0
HELLO_S = 30.0

Say = Callable[[str], None]
Open = Callable[[Node], Agent]
# The pairs among some readings that are under their thresholds, the worst first.
Doubtful = Callable[[list[Reading]], list[Pair]]


class Mesh:
    """One measurement of one set of nodes."""

    def __init__(
        self,
        nodes: Iterable[Node],
        settings: Settings,
        open_agent: Open,
        journal: Journal,
        *,
        say: Say = lambda _: None,
        doubtful: Doubtful = lambda _: [],
        measured: Callable[[], None] = lambda: None,
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.settings = settings
        self.agents: dict[str, Agent] = {}
        self.set_aside: dict[str, str] = {}
        self.flags: dict[str, list[str]] = {}
        self._open = open_agent
        self._journal = journal
        self._say = say
        self._doubtful = doubtful
        self._measured = measured  # told when the last round is over
        self._outcomes: dict[frozenset[str], bool] = {}

    def run(self, cluster: str, known: Iterable[Reading] = (), resumed_from: str = "") -> Result:
        """Measure what is not known yet. Raises MeshError when there is nothing to measure."""
        if len(self.nodes) < ENOUGH:
            raise MeshError(f"a mesh needs two nodes at least, and this run has {len(self.nodes)}")
        started = time.monotonic()
        readings = list(known)
        done = {reading.pair for reading in readings}
        plan = self.settings.plan(self.nodes)
        self._journal.begin(self.settings, self.nodes.values())
        for reading in readings:
            self._journal.add([reading])
        try:
            self._start()
            wiring = self._wiring()
            for name, rail in crossed(self.nodes, wiring):
                # It would wait in vain for every answer, on every rail that it is not on.
                if port := self.nodes[name].port(rail):
                    port.faults = [*port.faults, "fabric.wiring"]
            for number, pairs in enumerate(plan, 1):
                todo = [pair for pair in pairs if frozenset(pair) not in done]
                if not todo:
                    continue
                self._say(f"round {number} of {len(plan)}: {len(todo)} pairs")
                with ThreadPoolExecutor(len(todo)) as pool:
                    for made in pool.map(self._pair, todo):
                        readings += made
                self._judge_nodes()
            self._measured()
            if self.settings.retest:
                readings = self._retest(readings)
        finally:
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(Agent.close, self.agents.values()))
        return Result(
            cluster=cluster,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(time.monotonic() - started, 1),
            settings=self.settings,
            nodes=list(self.nodes.values()),
            readings=readings,
            wiring=wiring,
            set_aside=self.set_aside,
            rounds=len(plan),
            resumed_from=resumed_from,
            reused_pairs=len(done & pairs_of(plan)),
        )

    def _retest(self, readings: list[Reading]) -> list[Reading]:
        """Measure what is under its thresholds once more, pair after pair, as far as they are few."""
        again: dict[frozenset[str], list[Reading]] = {}
        for pair in self._doubtful(readings)[: max(2, len(self.nodes) // 2)]:
            if not set(pair) & self.set_aside.keys():
                self._say(f"once more, by itself: {' and '.join(pair)}")
                again[frozenset(pair)] = self._pair(pair)
        first = {(r.source, r.target, r.rail): r for r in readings}
        for made in (reading for found in again.values() for reading in found):
            was = first[made.source, made.target, made.rail]
            made.before = was.error or f"{was.gbps} Gb/s, {was.us} us"
        return [
            *(r for r in readings if r.pair not in again),
            *(r for found in again.values() for r in found),
        ]

    def _start(self) -> None:
        def start(node: Node) -> None:
            try:
                agent = self.agents[node.name] = self._open(node)
                hello = agent.ask("hello", HELLO_S)
                missing = {"ib_write_bw", "ib_write_lat"} - set(hello["tools"])
                if missing:
                    raise DriveError(
                        f"{node.name}: {', '.join(sorted(missing))} is missing: install perftest"
                    )
                if any(port.gpu is not None for port in node.rails) and "--use_rocm" not in hello["flags"]:
                    raise DriveError(
                        f"{node.name}: its perftest cannot use GPU memory: build it with --enable-rocm, "
                        "or set rdma_fabric_gpu: none and prove host memory only"
                    )
                self.flags[node.name] = hello["flags"]
            except DriveError as error:
                self._put_aside(node.name, str(error).removeprefix(f"{node.name}: "))

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(start, self.nodes.values()))

    def _wiring(self) -> dict[str, Wiring]:
        run = uuid.uuid4().hex

        def look(node: Node) -> tuple[str, Wiring] | None:
            rails = [port.model_dump(include={"rail", "name", "ip", "gateway"}) for port in node.rails]
            try:
                found = self.agents[node.name].ask(
                    "wiring", WIRING_S + HELLO_S, node=node.name, run=run, rails=rails, seconds=WIRING_S
                )
            except AgentRefused as error:
                return node.name, Wiring(errors={str(port.rail): str(error) for port in node.rails})
            except AgentGone:
                self._judge_nodes()
                return None
            return node.name, Wiring.model_validate(found)

        here = [node for node in self.nodes.values() if node.name not in self.set_aside]
        # All at once: they shout and listen at the same time.
        with ThreadPoolExecutor(max(len(here), 1)) as pool:
            return dict(filter(None, pool.map(look, here)))

    def _pair(self, pair: Pair) -> list[Reading]:
        one, other = (self.nodes[name] for name in pair)
        rails = sorted({port.rail for port in one.rails} | {port.rail for port in other.rails})
        made = {
            (a, b, rail): Reading(source=a, target=b, rail=rail)
            for rail in rails
            for a, b in (pair, pair[::-1])
        }
        aside = [name for name in pair if name in self.set_aside]
        for reading in made.values():
            if aside:
                reading.skipped = f"node set aside: {aside[0]}"
            else:
                reading.skipped = self._unfit(one, reading.rail) or self._unfit(other, reading.rail)
        fit = [rail for rail in rails if not made[(*pair, rail)].skipped]
        groups = [fit] if self.settings.rails_at_once else [[rail] for rail in fit]
        try:
            for group in filter(None, groups):
                self._legs(one, other, group, made)
        except AgentGone as error:
            for reading in made.values():
                if reading.gbps is None and not reading.skipped and not reading.error:
                    reading.error = f"a node stopped answering: {error}"
        except AgentRefused as error:
            for reading in made.values():
                reading.error = reading.error or str(error)
        if fit:
            self._outcomes[frozenset(pair)] = not any(reading.error for reading in made.values())
        if not aside:
            self._journal.add(made.values())
        return list(made.values())

    @staticmethod
    def _unfit(node: Node, rail: int) -> str:
        port = node.port(rail)
        if port is None:
            return f"{node.name} has no rail{rail}"
        return f"rail{rail} of {node.name}: {port.faults[0]}" if port.faults else ""

    def _legs(
        self, one: Node, other: Node, rails: list[int], made: dict[tuple[str, str, int], Reading]
    ) -> None:
        for kind in ("bw", "lat"):
            for source, target in ((one, other), (other, one)):
                # What carries no data in either direction has no latency worth waiting for.
                live = [
                    rail
                    for rail in rails
                    if kind == "bw"
                    or not (
                        made[source.name, target.name, rail].error
                        and made[target.name, source.name, rail].error
                    )
                ]
                if live:
                    self._leg(kind, source, target, live, made)

    def _leg(
        self,
        kind: str,
        source: Node,
        target: Node,
        rails: list[int],
        made: dict[tuple[str, str, int], Reading],
    ) -> None:
        client, server = self.agents[source.name], self.agents[target.name]
        job, patience = uuid.uuid4().hex, self.settings.timeout_s
        length = patience + (self.settings.seconds if kind == "bw" else 0)

        def failed(rail: int, why: str) -> None:
            reading = made[source.name, target.name, rail]
            reading.error = reading.error or f"{'bandwidth' if kind == 'bw' else 'latency'}: {why}"

        tests = [self._test(kind, target, rail) for rail in rails]
        served = server.ask("serve", 2 * patience, job=job, tests=tests, within=patience)
        try:
            tests = [
                {**self._test(kind, source, rail), "port": served["ports"][str(rail)]}
                for rail in rails
                if str(rail) in served["ports"]
            ]
            ran = client.ask(
                "run", length + patience, job=job, tests=tests, peer=target.address, within=length
            )
        finally:
            # Its servers end with their clients, or now. Their counters are the other half of the reading.
            reaped = server.ask("reap", patience, job=job, within=0.5)
        for rail in rails:
            if str(rail) in served["errors"]:
                failed(rail, f"{target.name}: {served['errors'][str(rail)]}")
                continue
            got, reading = ran[str(rail)], made[source.name, target.name, rail]
            if "error" in got:
                at_server = reaped.get(str(rail), {}).get("error", "")
                failed(rail, got["error"] + (f" (at {target.name}: {at_server})" if at_server else ""))
            elif kind == "bw":
                reading.gbps, reading.mtu, reading.bytes = got["gbps"], got["mtu"], got["bytes"]
            else:
                reading.us = got["us"]
            if kind == "bw":
                reading.source_counters = got["counters"]
                reading.target_counters = reaped.get(str(rail), {}).get("counters", {})

    def _test(self, kind: str, node: Node, rail: int) -> dict[str, object]:
        port = node.port(rail)
        if port is None:
            raise MeshError(f"{node.name} has no rail{rail}")
        settings = self.settings
        return {
            "kind": kind,
            "rail": rail,
            "device": port.device,
            "gid_index": port.gid_index,
            "port": settings.port,
            "size": settings.size,
            "seconds": settings.seconds,
            "depth": settings.depth,
            "qps": settings.qps,
            "qp_timeout": settings.qp_timeout,
            "iterations": settings.latency_iterations,
            "tclass": settings.tclass,
            # perftest's latency test polls the buffer with the CPU: host memory only.
            "gpu": port.gpu if kind == "bw" else None,
            "dmabuf": port.dmabuf and "--use_rocm_dmabuf" in self.flags.get(node.name, []),
        }

    def _judge_nodes(self) -> None:
        for name, agent in self.agents.items():
            if agent.gone and name not in self.set_aside:
                self._put_aside(name, f"it stopped answering: {agent.gone}")
        while worst := worst_node(self._outcomes, self.set_aside):
            name, failed, tested = worst
            self._put_aside(name, f"it failed {failed} of {tested} pairs")

    def _put_aside(self, name: str, why: str) -> None:
        self._say(f"{name} is set aside: {why}")
        self.set_aside[name] = why


def worst_node(outcomes: dict[frozenset[str], bool], aside: Iterable[str]) -> tuple[str, int, int] | None:
    """The node to set aside next, with its failed and tested pairs; None when there is none.

    Pairs with a node that is set aside already say nothing of the other one. Of several candidates it is the
    one whose failures its peers explain least: who failed with peers that are well otherwise is at fault.
    """
    gone = set(aside)
    tested: dict[str, dict[str, bool]] = defaultdict(dict)
    for pair, passed in outcomes.items():
        if not pair & gone:
            one, other = pair
            tested[one][other] = tested[other][one] = passed

    def well(name: str, but: str) -> float:
        others = [passed for peer, passed in tested[name].items() if peer != but]
        return sum(others) / len(others) if others else 0.5

    candidates = []
    for name, found in tested.items():
        failed = [peer for peer, passed in found.items() if not passed]
        if len(found) >= ENOUGH and len(failed) >= SHARE * len(found):
            blame = sum(well(peer, name) for peer in failed)
            candidates.append((blame, len(failed) / len(found), name, len(failed), len(found)))
    if not candidates:
        return None
    _, _, name, count, total = max(candidates)
    return name, count, total
