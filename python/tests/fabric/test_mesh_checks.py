"""What is made of a mesh's readings: each fault named, with its figures, at the host that it is laid to."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from splitrail.fabric.mesh_checks import judge
from splitrail.fabric.mesh_data import MeshError, Node, RailPort, Reading, Result, Settings, Wiring
from splitrail.fabric.mesh_fleet import fleet_checks
from splitrail.fabric.thresholds import load, row_of

Checks = dict[str, list[dict[str, Any]]]
ROWS = load()


def node(name: str, rails: int = 1, **more: Any) -> Node:
    ports = [
        RailPort(
            **{
                **{"rail": rail, "name": f"rail{rail}", "device": f"mlx5_{rail}", "gid_index": 3},
                **{"rate_gbps": 400.0, "firmware": "28.43.1014", "board": "MT_0838"},
                **more,
            }
        )
        for rail in range(rails)
    ]
    return Node(name=name, address="10.0.0.1", rails=ports)


def mesh(names: str = "abcd", rails: int = 1, **more: Any) -> Result:
    """A healthy mesh of 400 Gb/s rails."""
    readings = [
        Reading(
            **{
                **{"source": a, "target": b, "rail": rail, "gbps": 392.0, "us": 2.1, "mtu": 4096},
                **{"bytes": 49_000_000_000, "source_counters": {"port_xmit_data": 12_400_000_000}},
            }
        )
        for a, b in permutations(names, 2)
        for rail in range(rails)
    ]
    nodes = [node(name, rails, **more) for name in names]
    wiring = {
        a: Wiring(heard={str(rail): [(b, rail) for b in names if b != a] for rail in range(rails)})
        for a in names
    }
    return Result(
        cluster="t", at="now", seconds=1, settings=Settings(), nodes=nodes, readings=readings, wiring=wiring
    )


def reading(result: Result, source: str, target: str, rail: int = 0) -> Reading:
    return next(r for r in result.readings if (r.source, r.target, r.rail) == (source, target, rail))


def failed(checks: Checks) -> dict[str, list[tuple[str, str]]]:
    found = {host: [(c["name"], c["subject"]) for c in made if not c["ok"]] for host, made in checks.items()}
    return {host: made for host, made in found.items() if made}


def test_a_healthy_mesh_passes_every_check_and_every_check_is_made() -> None:
    checks = judge(mesh(rails=2), ROWS).checks
    assert failed(checks) == {}
    assert {c["name"] for c in checks["a"]} == {
        f"fabric.{name}"
        for name in ("wiring", "reachable", "bandwidth", "latency", "loss", "counted", "coverage")
    }
    (coverage,) = [c for c in checks["a"] if c["name"] == "fabric.coverage"]
    assert coverage["measured"] == "12 of 12 ways to 3 of 3 peers"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gbps": 355.0}, "fabric.bandwidth"),  # under 90 % of the rate
        ({"us": 11.0}, "fabric.latency"),
        ({"source_counters": {"port_xmit_data": 12_400_000_000, "packet_seq_err": 130}}, "fabric.loss"),
        ({"target_counters": {"out_of_sequence": 130}}, "fabric.loss"),
        ({"source_counters": {"port_xmit_data": 1000}}, "fabric.counted"),
        ({"source_counters": {}}, "fabric.counted"),
        ({"gbps": None, "us": None, "error": "bandwidth: Failed status 12"}, "fabric.reachable"),
    ],
)
def test_a_fault_with_most_peers_is_filed_at_the_host_that_has_it(change: dict[str, Any], name: str) -> None:
    result = mesh()
    for peer in "acd":
        for one in (reading(result, "b", peer), reading(result, peer, "b")):
            for key, value in change.items():
                setattr(one, key, value)
    found = failed(judge(result, ROWS).checks)
    assert set(found) == {"b"}
    assert {made for made, _ in found["b"]} == {name}
    hints = [c["hint"] for c in judge(result, ROWS).checks["b"] if not c["ok"] and "more" not in c["subject"]]
    assert all("rail0 of b" in hint for hint in hints)


def test_more_faults_than_one_reads_are_counted() -> None:
    result = mesh("abcdefg")
    for peer in "acdefg":
        reading(result, "b", peer).gbps = 10.0
    (found,) = failed(judge(result, ROWS).checks).values()
    assert len(found) == 6
    assert found[-1] == ("fabric.bandwidth", "rail0, 1 more links")


def test_a_link_of_two_healthy_nodes_is_filed_at_both() -> None:
    result = mesh("ab")
    reading(result, "a", "b").gbps = 39.0
    found = failed(judge(result, ROWS).checks)
    assert found == {host: [("fabric.bandwidth", "rail0, a -> b")] for host in "ab"}


def test_of_two_nodes_the_one_whose_rail_failed_a_node_check_is_to_blame() -> None:
    result = mesh("ab")
    result.nodes[1].rails[0].doubts = ["fabric.mtu"]
    reading(result, "a", "b").gbps = 39.0
    assert failed(judge(result, ROWS).checks) == {"b": [("fabric.bandwidth", "rail0, a -> b")]}


def test_ten_percent_under_the_median_is_named_though_the_rate_would_do() -> None:
    result = mesh()
    for one in result.readings:
        one.gbps = 399.0
    for peer in "bcd":
        reading(result, "a", peer).gbps = 360.5  # over 90 % of 400, and of 399
    own = [
        {
            "name": "lax",
            "share_of_median": {"value": 0.95, "basis": "t"},
            "loss_ppm": {"value": 1, "basis": "t"},
        }
    ]
    assert failed(judge(result, ROWS).checks) == {}
    found = failed(judge(result, load(own)).checks)
    assert set(found) == {"a"}


@pytest.mark.parametrize(("gbps", "bad"), [(0.018, True), (0.09, False)])
def test_soft_rails_are_judged_by_their_median(gbps: float, bad: bool) -> None:
    result = mesh("ab", rails=2, soft=True, rate_gbps=2.5)
    for one in result.readings:
        one.gbps, one.us, one.bytes = 0.15, 900.0, 40960000
        one.source_counters = {"sent_pkts": 10050}
    reading(result, "a", "b", 1).gbps = gbps
    assert bool(failed(judge(result, ROWS).checks)) is bad


def test_soft_rails_half_of_which_are_slow() -> None:
    result = mesh("ab", rails=2, soft=True)
    for one in result.readings:
        one.gbps, one.bytes, one.source_counters = 0.15, 4096, {"sent_pkts": 1}
    for one in (reading(result, "a", "b", 0), reading(result, "b", "a", 0)):
        one.gbps = 0.015
    found = judge(result, ROWS).faults
    assert {(fault.name, fault.reading.rail) for fault in found} == {("fabric.bandwidth", 0)}


def test_one_percent_loss_on_a_soft_rail() -> None:
    result = mesh("ab", soft=True)
    for one in result.readings:
        one.bytes, one.source_counters = 4096 * 5000, {"sent_pkts": 5100}
    reading(result, "a", "b").source_counters = {
        "sent_pkts": 5100,
        "rcvd_seq_err": 48,
        "completer_retry_err": 2,
    }
    (fault,) = judge(result, ROWS).faults
    assert (fault.name, fault.measured, fault.required) == ("fabric.loss", 10000.0, 1000.0)


def test_a_node_set_aside_answers_for_what_was_not_tested_with_it() -> None:
    result = mesh()
    result.set_aside = {"c": "it stopped answering: silent for 20 s"}
    for one in result.readings:
        if "c" in one.pair:
            one.gbps = one.us = None
            one.skipped = "node set aside: c"
    found = failed(judge(result, ROWS).checks)
    assert found == {"c": [("fabric.node", "c"), ("fabric.coverage", "mesh of c")]}
    (coverage,) = [c for c in judge(result, ROWS).checks["a"] if c["name"] == "fabric.coverage"]
    assert coverage["measured"].endswith("not tested: 2 (node set aside: c)")


def test_an_error_with_a_node_set_aside_is_that_nodes() -> None:
    result = mesh("abc")
    result.set_aside = {"c": "it stopped answering"}
    for peer in "ab":
        reading(result, peer, "c").error = "a node stopped answering: c"
    assert set(failed(judge(result, ROWS).checks)) == {"c"}


def test_a_sample_passes_and_says_what_it_left_out() -> None:
    result = mesh()
    result.settings = Settings(mesh="sample", sample=1)
    kept = {frozenset(pair) for pair in result.settings.plan("abcd")[0]}
    result.readings = [r for r in result.readings if r.pair in kept]
    checks = judge(result, ROWS).checks
    assert failed(checks) == {}
    (coverage,) = [c for c in checks["a"] if c["name"] == "fabric.coverage"]
    assert coverage["measured"] == "2 of 2 ways to 1 of 3 peers; a sample of degree 1: 2 peers not tested"


def test_nothing_measured_is_no_pass() -> None:
    result = mesh()
    result.readings = []
    assert failed(judge(result, ROWS).checks) == {
        name: [("fabric.coverage", f"mesh of {name}")] for name in "abcd"
    }


def test_the_swapped_node_is_named_and_its_peers_are_not() -> None:
    result = mesh(rails=2)
    for name, wiring in result.wiring.items():
        for rail in (0, 1):
            wiring.heard[str(rail)] = [
                (peer, rail if (name == "b") == (peer == "b") else 1 - rail)
                for peer in "abcd"
                if peer != name
            ]
    found = failed(judge(result, ROWS).checks)
    assert found == {"b": [("fabric.wiring", "rail0 of b"), ("fabric.wiring", "rail1 of b")]}
    (first, _) = [c for c in judge(result, ROWS).checks["b"] if not c["ok"]]
    assert first["measured"] == "wired to rail 1: hears rail 1 of a (beacon)"
    assert "Swap the cables of b back" in first["hint"]


def test_between_two_nodes_both_are_named() -> None:
    result = mesh("ab", rails=2)
    for name, peer in (("a", "b"), ("b", "a")):
        result.wiring[name] = Wiring(heard={"0": [(peer, 1)], "1": [(peer, 0)]})
    assert {host: len(made) for host, made in failed(judge(result, ROWS).checks).items()} == {"a": 2, "b": 2}


def test_a_rail_that_nobody_else_has_up_is_not_to_blame_for_silence() -> None:
    result = mesh("ab", rails=2)
    result.nodes[1].rails[1].faults = ["fabric.link"]
    result.wiring["a"].heard["1"] = []
    assert [f for f in failed(judge(result, ROWS).checks).get("a", []) if f[0] == "fabric.wiring"] == []
    result.nodes[1].rails[1].faults = []
    assert ("fabric.wiring", "rail1 of a") in failed(judge(result, ROWS).checks)["a"]


@pytest.mark.parametrize(
    ("answered", "measured"),
    [
        (["10.30.0.1"], "gateway 10.30.0.1 answers (ARP)"),
        (["10.30.1.1"], "wired to rail 1: its gateway 10.30.1.1 answers here (ARP)"),
        ([], "gateway 10.30.0.1 does not answer (ARP), and no node is heard (beacon)"),
    ],
)
def test_routed_rails_are_judged_by_their_gateway(answered: list[str], measured: str) -> None:
    result = mesh("ab", rails=2)
    for one in result.nodes:
        for port in one.rails:
            port.gateway = f"10.30.{port.rail}.1"
    for wiring in result.wiring.values():
        wiring.heard, wiring.answered = {}, {"0": ["10.30.0.1"], "1": ["10.30.1.1"]}
    result.wiring["a"].answered["0"] = answered
    (made,) = [c for c in judge(result, ROWS).checks["a"] if c["subject"] == "rail0 of a"]
    assert made["measured"] == measured
    assert made["ok"] is (answered == ["10.30.0.1"])


def test_the_odd_firmware_and_rate_are_named() -> None:
    nodes = [node(name) for name in "abc"]
    nodes[1].rails[0].firmware = "28.39.1002"
    nodes[2].rails[0].rate_gbps = 200.0
    found = failed(fleet_checks(nodes))
    assert found == {
        "b": [("fabric.firmware", "rail0 MT_0838")],
        "c": [("fabric.rate", "rail0 as the others")],
    }
    (made,) = [c for c in fleet_checks(nodes)["b"] if not c["ok"]]
    assert (made["measured"], made["required"]) == ("28.39.1002", "28.43.1014 (on 2 of 3)")


def test_of_two_the_older_firmware_is_the_odd_one() -> None:
    nodes = [node("a", firmware="28.9.1"), node("b", firmware="28.43.1014")]
    assert set(failed(fleet_checks(nodes))) == {"a"}
    assert set(failed(fleet_checks([node("a", firmware=""), node("b", firmware="")]))) == {"a", "b"}


def test_cards_of_different_kinds_need_not_agree() -> None:
    assert failed(fleet_checks([node("a"), node("b", board="MT_0001", firmware="1.2.3")])) == {}


@pytest.mark.parametrize(
    ("port", "row"),
    [
        ({"soft": True, "rate_gbps": 2.5}, "soft-RoCE"),
        ({"rate_gbps": 400.0, "gpu": 3}, "GPU memory, 200 Gb/s and up"),
        ({"rate_gbps": 400.0}, "host memory, 25 Gb/s and up"),
        ({"rate_gbps": 10.0}, "slower links, and GPU memory below 200 Gb/s"),
        ({"rate_gbps": 100.0, "gpu": 0}, "slower links, and GPU memory below 200 Gb/s"),
    ],
)
def test_which_thresholds_fit(port: dict[str, Any], row: str) -> None:
    assert row_of(ROWS, RailPort(rail=0, name="rail0", **port)).name == row


def test_every_threshold_has_its_basis() -> None:
    assert all(figure.basis and figure.value > 0 for row in ROWS for _, figure in row.figures())


def test_an_inventorys_row_comes_first_and_a_wrong_one_is_refused() -> None:
    own = {
        "name": "mine",
        "share_of_median": {"value": 0.5, "basis": "t"},
        "loss_ppm": {"value": 5, "basis": "t"},
    }
    assert row_of(load([own]), RailPort(rail=0, name="rail0", rate_gbps=400)).name == "mine"
    with pytest.raises(MeshError, match=r"rdma_fabric_thresholds: row 0\.loss_ppm\.basis"):
        load([{**own, "loss_ppm": {"value": 5}}])


def test_weak_is_what_passes_and_is_under_its_mark() -> None:
    result = mesh("ab")
    reading(result, "a", "b").gbps = 365.0
    reading(result, "b", "a").gbps = 100.0
    judged = judge(result, load())
    # The median is the better one's, of which the other is no tenth short.
    assert [str(one) for one in judged.weak] == ["rail0, a -> b"]
    assert [str(fault.reading) for fault in judged.faults] == ["rail0, b -> a"]
