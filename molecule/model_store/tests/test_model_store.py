"""Every node has the models byte for byte, its verdict says so, and of the way they came nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
MODELS = "/var/lib/splitrail/models"
FOLDER = f"{MODELS}/tiny"
# Of the two weight files that make_model.py writes.
SUMS = {
    "model-00001-of-00002.safetensors": "ff0f67440e4b533824212de53afebc16c79697f1398dd0e7800da00c961e38bc",
    "model-00002-of-00002.safetensors": "21bdfbbe0e50ab310ecd2618745ac1adf4cef644375be6d6535f13c0c0fdc9f2",
}


def sums(host: Host, folder: str) -> dict[str, str]:
    """Digest by name of the weight files."""
    lines = host.check_output(f"cd {folder} && sha256sum *.safetensors").splitlines()
    return {line.split()[1]: line.split()[0] for line in lines}


@pytest.mark.broken("mol-decode")
def test_the_model_is_whole(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("model", host)
    found = [check for check in verdict["checks"] if check["subject"].startswith(FOLDER)]
    assert found
    assert [check for check in found if not check["ok"]] == []


@pytest.mark.broken("mol-decode")
def test_the_bytes_are_those_of_the_hub(host: Host) -> None:
    assert sums(host, FOLDER) == SUMS


def test_the_bytes_are_those_of_the_web_server(host: Host) -> None:
    assert sums(host, f"{MODELS}/plain") == SUMS


def test_each_weight_file_was_looked_at(host: Host, verdicts: Verdicts) -> None:
    checks = verdicts("model", host)["checks"]
    looked_at = {check["subject"] for check in checks if check["name"] == "model_store.weights"}
    assert set(host.check_output(f"ls {FOLDER}/*.safetensors").split()) <= looked_at


def test_engines_that_are_not_root_may_read_it(host: Host) -> None:
    assert host.check_output(f"stat --format=%a%U {FOLDER}/config.json") == "644root"


def test_nothing_is_left_of_the_way_it_came(host: Host) -> None:
    assert not host.file("/run/splitrail/model").exists
    assert not host.service("splitrail-model").is_running
    assert not host.socket("tcp://8095").is_listening
    assert host.check_output(f"ls -A {MODELS} | grep -v -e '^other.part$' | sort").split() == [
        "plain",
        "tiny",
    ]


def test_the_hubs_token_shows_nowhere(host: Host, leaks: Callable[[Host, str], list[str]]) -> None:
    assert leaks(host, "/root/planted-token") == []
