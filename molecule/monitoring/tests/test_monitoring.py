"""Every host has its exporter on one address; the server reads all, on loopback, and its rules work."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

API = "http://127.0.0.1:9090/api/v1"
RULES = Path(__file__).parents[1] / "files/rules_test.yml"


def server(host: Host) -> Host:
    """This host if it is the server; else the test is skipped."""
    if not host.package("prometheus").is_installed:
        pytest.skip("this host is no server")
    return host


def prometheus(host: Host, path: str) -> Any:
    """What its API answers."""
    program = f"from urllib.request import urlopen as o; print(o('{API}/{path}').read().decode())"
    return json.loads(host.check_output("python3 -c %s", program))["data"]


@pytest.mark.broken("mol-prefill")
def test_the_exporter_listens_on_one_address(host: Host) -> None:
    listening = [line for line in host.socket.get_listening_sockets() if line.endswith(":9100")]
    assert listening == [f"tcp://{host.interface('host0').addresses[0]}:9100"]


def test_the_server_listens_on_loopback(host: Host) -> None:
    listening = [line for line in server(host).socket.get_listening_sockets() if line.endswith(":9090")]
    assert listening == ["tcp://127.0.0.1:9090"]


def test_they_start_at_boot_without_privileges(host: Host) -> None:
    units = ["prometheus-node-exporter", *(["prometheus"] if host.package("prometheus").is_installed else [])]
    for unit in units:
        assert host.service(unit).is_enabled
        shown = host.check_output("systemctl show %s -p NoNewPrivileges -p ProtectSystem -p User", unit)
        assert set(shown.split()) == {"User=prometheus", "NoNewPrivileges=yes", "ProtectSystem=strict"}


@pytest.mark.broken("mol-head")
def test_every_target_answers(host: Host) -> None:
    targets = prometheus(server(host), "targets")["activeTargets"]
    assert {(one["labels"]["job"], one["labels"].get("host")) for one in targets} == {
        ("ingress", None),
        *((job, node) for job in ("node", "ray") for node in ("mol-head", "mol-prefill")),
    }
    assert {one["health"] for one in targets} == {"up"}


def test_engines_are_told_by_their_pools(host: Host) -> None:
    """A recording rule, from a page such as Ray's: the engine whose replica is gone does not count."""
    deadline = time.monotonic() + 60
    while True:
        found = prometheus(server(host), "query?query=splitrail:kv_cache_usage:max")["result"]
        if found or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert [(one["metric"]["pool"], one["value"][1]) for one in found] == [("decode", "0.25")]


def test_the_entrance_has_its_rules(host: Host) -> None:
    """From a page such as HAProxy's own exporter gives."""
    server(host)
    deadline = time.monotonic() + 60
    while True:
        found = prometheus(host, "query?query=splitrail:entrance_connections:ratio")["result"]
        if found or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert [one["value"][1] for one in found] == ["0.25"]


def test_what_nobody_reads_is_not_kept(host: Host) -> None:
    assert prometheus(server(host), "query?query=ray_tasks")["result"] == []


def test_every_alert_fires_and_is_silent(host: Host) -> None:
    """`promtool test rules`, of this host's own Prometheus, on the rules as the role wrote them."""
    told = base64.b64encode(RULES.read_bytes()).decode()
    folder = server(host).check_output("mktemp -d")
    host.check_output(
        f"cp /etc/prometheus/splitrail/recording.yml /etc/prometheus/splitrail/alerts.yml {folder}"
    )
    host.check_output(f"echo {told} | base64 -d > {folder}/rules_test.yml")
    done = host.run(f"cd {folder} && promtool test rules rules_test.yml")
    assert done.rc == 0, done.stdout + done.stderr
