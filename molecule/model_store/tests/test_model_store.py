"""Every node's verdict says that its model is whole and the same as its peers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
FOLDER = "/var/lib/splitrail/models/tiny"


@pytest.mark.broken("mol-decode")
def test_the_model_is_whole(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("model", host)
    assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]


@pytest.mark.broken("mol-decode")
def test_weight_files_are_of_one_size(host: Host) -> None:
    first, second = host.check_output(f"stat --format=%s {FOLDER}/*.safetensors").split()
    assert first == second


def test_each_weight_file_was_looked_at(host: Host, verdicts: Verdicts) -> None:
    checks = verdicts("model", host)["checks"]
    looked_at = sorted(check["subject"] for check in checks if check["name"] == "model_store.weights")
    assert looked_at == host.check_output(f"ls {FOLDER}/*.safetensors").split()
