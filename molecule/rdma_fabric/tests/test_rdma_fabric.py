"""The verdict speaks of TCP only, agrees with the network, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
PEERS = {"mol-head": ("mol-prefill", "10.88.0.12"), "mol-prefill": ("mol-head", "10.88.0.11")}


@pytest.mark.broken
def test_the_node_passed(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("fabric", host)
    assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]


@pytest.mark.broken
def test_the_peer_is_reached_by_other_means(host: Host) -> None:
    _, address = PEERS[host.backend.get_hostname()]
    assert host.run(f"timeout 3 bash -c '</dev/tcp/{address}/22'").succeeded


def test_every_finding_of_the_mesh_says_tcp_and_names_the_way(host: Host, verdicts: Verdicts) -> None:
    node = host.backend.get_hostname()
    way = f"transport: tcp (declared), {node} -> {PEERS[node][0]}"
    mesh = [check for check in verdicts("fabric", host)["checks"] if check["name"].startswith("fabric.tcp_")]
    assert {(check["name"], check["subject"]) for check in mesh} == {
        ("fabric.tcp_reachable", way),
        ("fabric.tcp_rtt", way),
        ("fabric.tcp_throughput", way),
    }


def test_no_server_is_left(host: Host) -> None:
    assert host.run("ss -Htan sport = :18515 | grep -v TIME-WAIT").stdout == ""
    assert host.process.filter(comm="python3") == []  # a bare node runs none of its own
