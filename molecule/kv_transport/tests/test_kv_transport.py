"""The verdict speaks of TCP only, what was read was right, and nothing is left but the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
NEXT = {"mol-head": "mol-prefill", "mol-prefill": "mol-head"}
UNIT = "splitrail-kv-transport"


def checks(host: Host, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    """What was found about the transfer over TCP, by name."""
    way = f"transport: tcp (declared), {host.backend.get_hostname()} <- {NEXT[host.backend.get_hostname()]}"
    return {check["name"]: check for check in verdicts("validate", host)["checks"] if check["subject"] == way}


@pytest.mark.broken
def test_the_node_read_what_its_peer_holds(host: Host, verdicts: Verdicts) -> None:
    found = checks(host, verdicts)
    assert found["validate.transfer"]["measured"] == "DONE"
    assert found["validate.data"]["measured"] == 0


@pytest.mark.broken
def test_nothing_but_tcp_was_proven(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("validate", host)
    assert verdict["ok"]
    names = {check["name"] for check in verdict["checks"]}
    assert names == {"validate.ucx_tls", "validate.transfer", "validate.data"}


def test_nothing_is_left(host: Host) -> None:
    assert host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive"
    assert UNIT not in host.check_output("podman ps --all")
    assert not host.file(f"/run/{UNIT}").exists
    assert host.run("ss -Hltn sport = :18516").stdout == ""


def test_the_program_is_roots(host: Host) -> None:
    file = host.file("/usr/local/lib/splitrail/kv_transfer.py")
    assert (file.user, file.mode) == ("root", 0o644)
