"""The mesh over real agents: healthy, and with every kind of trouble on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import Any

import pytest

from splitrail.fabric import drive
from splitrail.fabric.drive import Agent, AgentGone, AgentRefused, ProcessChannel
from splitrail.fabric.mesh import worst_node
from splitrail.fabric.mesh_data import Journal, MeshError, Node, Reading, Settings, Wiring
from splitrail.fabric.mesh_resume import doubtful, healthy, known_readings
from splitrail.fabric.schedule import Pair
from splitrail.fabric.thresholds import load


def test_a_healthy_mesh_has_every_way_of_every_rail(fabric: Any) -> None:
    result = fabric.measure(fabric.nodes("ab"))
    ways = {(r.source, r.target, r.rail) for r in result.readings}
    assert ways == {(a, b, rail) for a, b in (("a", "b"), ("b", "a")) for rail in (0, 1)}
    assert {(r.gbps, r.us, r.mtu, r.error, r.skipped) for r in result.readings} == {
        (100.0, 2.0, 4096, "", "")
    }
    assert all(r.source_counters["sent_pkts"] > 0 for r in result.readings)
    assert (result.rounds, result.set_aside) == (1, {})


def test_one_direction_may_fail_alone(fabric: Any) -> None:
    fabric.plan = {"a0>b0": {"gbps": 3.5}, "b0>a0": {"error": "Failed status 12: syndrom 0x81"}}
    result = fabric.measure(fabric.nodes("ab", rails=1), rails_at_once=False)
    there, back = sorted(result.readings, key=lambda r: r.source)
    assert (there.gbps, there.error) == (3.5, "")
    assert back.gbps is None
    assert "syndrom 0x81" in back.error


@pytest.mark.parametrize(
    ("trouble", "why"), [({"garbage": True}, "no figure"), ({"hang": True}, "timed out")]
)
def test_a_test_without_a_figure_is_an_error_and_costs_its_timeout(
    fabric: Any, trouble: Any, why: str
) -> None:
    fabric.plan = {"a0>b0": trouble}
    started = time.monotonic()
    result = fabric.measure(fabric.nodes("ab", rails=1), timeout_s=4)
    assert time.monotonic() - started < 40
    (bad,) = [r for r in result.readings if r.source == "a"]
    assert why in bad.error
    assert [r.error for r in result.readings if r.source == "b"] == [""]


def test_a_taken_port_is_passed_over(fabric: Any) -> None:
    with socket.create_server(("0.0.0.0", fabric.port)):  # noqa: S104  as perftest does
        result = fabric.measure(fabric.nodes("ab", rails=1))
    assert [r.error for r in result.readings] == ["", ""]


def test_a_server_that_can_never_listen_is_named(fabric: Any) -> None:
    fabric.plan = {"b0": {"bind": True}}
    result = fabric.measure(fabric.nodes("ab", rails=1))
    (bad,) = [r for r in result.readings if r.target == "b"]
    assert "b: the server did not start: Couldn't bind" in bad.error


def test_a_node_that_fails_its_pairs_is_set_aside_and_its_peers_are_not(fabric: Any) -> None:
    fabric.plan = {"c0": {"error": "Failed to modify QP to RTR"}}
    result = fabric.measure(fabric.nodes("abcd", rails=1))
    assert result.set_aside == {"c": "it failed 2 of 2 pairs"}
    skipped = {r.pair: r.skipped for r in result.readings if r.skipped}
    assert len(skipped) == 1
    assert next(iter(skipped)) & {"c"}
    assert set(skipped.values()) == {"node set aside: c"}
    assert {r.pair for r in result.readings if r.gbps} == {frozenset(p) for p in ("ab", "ad", "bd")}


def test_a_node_that_dies_in_the_middle_costs_a_bounded_time(
    fabric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "PING_S", 0.3)
    monkeypatch.setattr(drive, "SILENCE_S", 3.0)
    nodes = fabric.nodes("abc", rails=1)
    fabric.plan = {"c0": {"hang": True}}
    mesh = fabric.mesh(nodes, timeout_s=4)
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        # SIGSTOP and not SIGKILL: the connection stays open and nothing comes, as from a frozen machine.
        if text.startswith("round 2") and "c" in mesh.agents:
            os.kill(fabric.channels["c"].pid, signal.SIGSTOP)

    mesh._say = stop
    started = time.monotonic()
    try:
        result = mesh.run("test")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was ended with its channel
            os.kill(fabric.channels["c"].pid, signal.SIGCONT)
    assert time.monotonic() - started < 60
    assert "stopped answering" in result.set_aside["c"] or "failed 2 of 2" in result.set_aside["c"]
    assert {r.pair for r in result.readings if r.gbps} == {frozenset("ab")}


def test_an_agent_that_ends_is_noticed_at_once(fabric: Any) -> None:
    (node,) = fabric.nodes("a", rails=1)
    agent = fabric.open(node)
    os.kill(fabric.channels["a"].pid, signal.SIGKILL)
    with pytest.raises(AgentGone, match=r"ended|broke"):
        agent.ask("ping", 20)
    assert agent.gone


def test_an_agent_that_speaks_garbage_is_not_believed() -> None:
    agent = Agent("a", ProcessChannel(["sh", "-c", "echo Welcome to our login node; sleep 5"]))
    with pytest.raises(AgentGone, match="does not speak as an agent"):
        agent.ask("hello", 5)
    agent.close()


def test_a_node_without_python_says_so() -> None:
    agent = Agent(
        "a", ProcessChannel(["sh", "-c", "cat >/dev/null & echo python3: command not found >&2; exit 127"])
    )
    with pytest.raises(AgentGone, match="command not found"):
        agent.ask("hello", 5)


def test_an_answer_that_never_comes_ends_the_agent(fabric: Any) -> None:
    (node,) = fabric.nodes("a", rails=1)
    agent = fabric.open(node)
    with pytest.raises(AgentRefused, match="no such request"):
        agent.ask("dance", 5)
    with pytest.raises(AgentGone, match="no answer to wiring within 0 s"):
        agent.ask("wiring", 0.1, node="a", run="r", rails=[{"rail": 0, "name": "lo", "ip": ""}], seconds=2)
    with pytest.raises(AgentGone):
        agent.ask("ping", 5)
    agent.close()


def test_a_node_that_cannot_be_reached_is_set_aside_from_the_start(fabric: Any) -> None:
    nodes = fabric.nodes("abc", rails=1)
    mesh = fabric.mesh(nodes)
    opened = mesh._open

    def refuse(node: Node) -> Agent:
        if node.name == "b":
            raise drive.DriveError("b: SSH to b failed: timed out")
        made: Agent = opened(node)
        return made

    mesh._open = refuse
    result = mesh.run("test")
    assert result.set_aside == {"b": "SSH to b failed: timed out"}
    assert {r.pair for r in result.readings if r.gbps} == {frozenset("ac")}
    assert sum(bool(r.skipped) for r in result.readings) == 4


def test_a_rail_that_failed_its_node_checks_is_not_measured(fabric: Any) -> None:
    nodes = fabric.nodes("ab")
    nodes[1].rails[1].faults = ["fabric.gid"]
    result = fabric.measure(nodes)
    assert {r.rail: r.skipped for r in result.readings} == {0: "", 1: "rail1 of b: fabric.gid"}
    assert result.set_aside == {}


def test_rails_on_each_others_switches_are_not_waited_for(
    fabric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = fabric.nodes("ab")
    mesh = fabric.mesh(nodes)
    wires = {
        "a": Wiring(heard={"0": [("b", 1)], "1": [("b", 0)]}),
        "b": Wiring(heard={"0": [("a", 1)], "1": [("a", 0)]}),
    }
    monkeypatch.setattr(mesh, "_wiring", lambda: wires)
    result = mesh.run("test")
    assert {r.rail: r.skipped for r in result.readings} == {
        0: "rail0 of a: fabric.wiring",
        1: "rail1 of a: fabric.wiring",
    }


def test_one_node_is_no_mesh(fabric: Any) -> None:
    with pytest.raises(MeshError, match="two nodes at least"):
        fabric.measure(fabric.nodes("a"))


def test_a_sample_leaves_pairs_out_and_says_how_many(fabric: Any) -> None:
    result = fabric.measure(fabric.nodes("abcd", rails=1), mesh="sample", sample=1)
    assert len({r.pair for r in result.readings}) == 2
    assert result.unplanned() == 4


def test_resumed_it_measures_only_what_is_missing_or_was_bad(fabric: Any) -> None:
    fabric.plan = {"a0>b0": {"error": "Failed status 12"}}
    nodes, settings = fabric.nodes("abc", rails=1), Settings(timeout_s=15, port=fabric.port)
    fabric.mesh(nodes, run="one").run("test")
    (fabric.folder / "two").mkdir()
    (fabric.folder / "two/run.json").write_text(json.dumps({"resumes": "one"}))
    journal = fabric.folder / "one/mesh/journal.jsonl"
    with journal.open("a") as stream:
        stream.write('{"readings": [{"sour')  # where it broke off
    known, source, why = known_readings(fabric.folder / "two", settings, nodes, load())
    assert ({r.pair for r in known}, source, why) == ({frozenset("ac"), frozenset("bc")}, "one", "")

    fabric.plan = {}
    said: list[str] = []
    mesh = fabric.mesh(nodes, run="two")
    mesh._say = said.append
    result = mesh.run("test", known, source)
    assert [text for text in said if text.startswith("round")] == [
        next(t for t in said if t.endswith("1 pairs"))
    ]
    assert result.reused_pairs == 2
    assert all(r.gbps for r in result.readings)
    assert len(result.readings) == 6
    # And a third run finds all of it in the second one's journal.
    again = Journal(fabric.folder / "two").recall(settings, nodes)
    assert len(healthy(again, settings, nodes, load())) == 6


@pytest.mark.parametrize("change", ["boot_id", "nodes", "settings", "journal"])
def test_nothing_is_taken_over_from_another_fabric(fabric: Any, change: str) -> None:
    nodes, settings = fabric.nodes("ab", rails=1), Settings()
    journal = Journal(fabric.folder / "one")
    journal.begin(settings, nodes)
    (fabric.folder / "two").mkdir()
    (fabric.folder / "two/run.json").write_text(json.dumps({"resumes": "one"}))
    if change == "boot_id":
        journal.add([Reading(source="a", target="b", rail=0, gbps=1, us=1)])
        nodes[0].boot_id = "rebooted"
        assert known_readings(fabric.folder / "two", settings, nodes, load())[0] == []
        return
    if change == "nodes":
        nodes = nodes[:1]
    if change == "settings":
        settings = Settings(size=4096)
    if change == "journal":
        journal.path.write_text("not json\n")
    known, _, why = known_readings(fabric.folder / "two", settings, nodes, load())
    assert known == []
    assert {"nodes": "of other nodes: b", "settings": "other settings", "journal": "no journal"}[
        change
    ] in why


def outcomes(**pairs: bool) -> dict[frozenset[str], bool]:
    return {frozenset(pair): passed for pair, passed in pairs.items()}


@pytest.mark.parametrize(
    ("found", "aside", "worst"),
    [
        (outcomes(ab=True, cd=True, ac=True), [], None),
        (outcomes(ab=False), [], None),  # one pair says nothing
        (outcomes(xa=False, bc=True, xb=False, ac=True), [], ("x", 2, 2)),
        (outcomes(xa=False, bc=True, xb=False, ac=True), ["x"], None),  # a and b are not to blame
        # Of two bad nodes neither takes the healthy p along, which met both.
        (outcomes(xp=False, yq=False, yp=False, xq=False, pq=True), [], ("y", 2, 2)),
        (outcomes(xp=False, yq=False, yp=False, xq=False, pq=True), ["y"], ("x", 2, 2)),
        (outcomes(xp=False, yq=False, yp=False, xq=False, pq=True), ["y", "x"], None),
    ],
)
def test_who_is_set_aside(
    found: dict[frozenset[str], bool], aside: list[str], worst: tuple[str, int, int] | None
) -> None:
    assert worst_node(found, aside) == worst


def test_what_shared_cpus_made_slow_is_measured_once_more_and_a_slow_link_stays_slow(fabric: Any) -> None:
    fabric.plan = {"a0>b0": {"gbps": 10.0}}
    nodes = fabric.nodes("ab", rails=2)
    mesh = fabric.mesh(nodes, retest=True)

    def noisy(readings: list[Reading]) -> list[Pair]:
        fabric.plan["a0>b0"]["gbps"] = 90.0
        (fabric.folder / "plan.json").write_text(json.dumps(fabric.plan))
        return doubtful(readings, mesh.settings, nodes, load())

    mesh._doubtful = noisy
    (once,) = [r for r in mesh.run("test").readings if (r.source, r.rail) == ("a", 0)]
    assert (once.gbps, once.before) == (90.0, "10.0 Gb/s, 2.0 us")

    fabric.plan = {"a0>b0": {"gbps": 10.0}}
    again = fabric.mesh(nodes, run="two", retest=True)
    again._doubtful = lambda readings: doubtful(readings, again.settings, nodes, load())
    result = again.run("test")
    assert [r.gbps for r in result.readings if (r.source, r.rail) == ("a", 0)] == [10.0]
    assert len(result.readings) == 4
