"""The cluster has both nodes as declared, behind its token, and the token stays where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

HEAD = "10.88.0.11"
NODES = {"mol-head": (HEAD, "head"), "mol-prefill": ("10.88.0.12", "prefill")}
USER = 0  # of Ray in its container
TOKEN = "/etc/ray/token"  # noqa: S105  its path
# Prints the status of a request with the word that it is given as token, or with the content of the file of
# that name. A token on a command line would be in sudo's log.
ASK = f"""
import sys, urllib.error, urllib.request
word = sys.argv[1]
token = open(word).read() if word.startswith("/") else word
headers = {{"Authorization": "Bearer " + token}} if token else {{}}
request = urllib.request.Request("http://{HEAD}:8265/api/v0/nodes", headers=headers)
try:
    print(urllib.request.urlopen(request, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def alive(host: Host) -> dict[str, dict[str, Any]]:
    """The live nodes of the cluster that this node is in, by address, as Ray's own command lists them."""
    listed = host.run("podman exec ray ray list nodes --filter state=ALIVE --detail --format json")
    assert listed.rc == 0, listed.stderr
    return {node["node_ip"]: node for node in json.loads(listed.stdout)}


@pytest.mark.broken
def test_both_nodes_are_in_the_cluster_as_declared(host: Host) -> None:
    nodes = alive(host)
    assert sorted(nodes) == sorted(address for address, _ in NODES.values())
    for address, pool in NODES.values():
        assert nodes[address]["labels"]["pool"] == pool
        assert nodes[address]["resources_total"][pool] == 1


def test_ray_starts_at_boot(host: Host) -> None:
    assert host.service("ray").is_enabled


@pytest.mark.parametrize("word", ["", 64 * "1"])
def test_nobody_gets_an_answer_without_the_token(host: Host, word: str) -> None:
    assert host.check_output("python3 -c %s %s", ASK, word) in ("401", "403")


@pytest.mark.broken("mol-prefill")
def test_the_token_opens_the_interface(host: Host) -> None:
    assert host.check_output("python3 -c %s %s", ASK, TOKEN) == "200"


def test_the_dashboard_listens_on_the_management_address_alone(host: Host) -> None:
    listening = [line.split()[3] for line in host.check_output("ss -Hltn sport = :8265").splitlines()]
    own = NODES[host.backend.get_hostname()][0]
    assert listening == ([f"{HEAD}:8265"] if own == HEAD else [])


def test_the_token_is_in_its_file_and_nowhere_else(
    host: Host, leaks: Callable[[Host, str], list[str]]
) -> None:
    file = host.file(TOKEN)
    assert (file.uid, file.gid, file.mode) == (USER, USER, 0o600)
    assert len(file.content_string) == 64  # noqa: PLR2004  256 bits in hex
    assert leaks(host, TOKEN) == []


def test_a_secret_that_shows_is_found(host: Host, leaks: Callable[[Host, str], list[str]]) -> None:
    """The look itself, on a word that was put where anyone may read it."""
    host.check_output("mkdir -p /root/planted && cp /etc/machine-id /root/planted/secret")
    found = leaks(host, "/root/planted/secret")
    assert "/etc/machine-id" in found
    host.check_output("rm -r /root/planted")
