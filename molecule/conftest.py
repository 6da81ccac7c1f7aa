"""What the scenarios' tests share: which nodes they look at, and the proof that they can fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broken",
        action="store_true",
        help="the nodes were broken: tests marked `broken` must fail, all others must pass",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Look at the scenario's own nodes, as root, by the connection data that its create step wrote.

    Raises pytest.UsageError outside of a Molecule run.
    """
    scenario, state = os.environ.get("MOLECULE_FILE"), os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY")
    if not scenario or not state:
        raise pytest.UsageError("these tests look at a scenario's nodes: run `molecule verify -s NAME`")
    limit: str = yaml.safe_load(Path(scenario).read_text())["provisioner"]["options"]["limit"]
    config.option.hosts = ",".join(f"ssh://{node}" for node in limit.split(","))
    config.option.ssh_config = str(Path(state) / "ssh_config")
    config.option.sudo = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--broken``, a marked test must fail, by an assertion and not by accident."""
    if not config.getoption("--broken"):
        return
    marked = [item for item in items if _must_fail(item)]
    if not marked:
        raise pytest.UsageError("no test is marked `broken`: name what must fail after break.yml")
    for item in marked:
        item.add_marker(pytest.mark.xfail(strict=True, raises=AssertionError, reason="broken on purpose"))


@pytest.fixture
def verdicts() -> Callable[[str, Host], dict[str, Any]]:
    """``verdicts("preflight", host)``: what the scenario's last run filed for this verb and node."""

    def load(verb: str, host: Host) -> dict[str, Any]:
        folder = Path(os.environ["SPLITRAIL_RUN_DIR"]) / "verdicts" / verb
        verdict: dict[str, Any] = json.loads((folder / f"{_node(host)}.json").read_text())
        return verdict

    return load


def _node(host: Host) -> str:
    name: str = host.backend.get_hostname()
    return name


def _must_fail(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("broken")
    if marker is None:
        return False
    if not marker.args:
        return True
    callspec = getattr(item, "callspec", None)  # absent from a test that takes no host
    return callspec is not None and _node(callspec.params["_testinfra_host"]) in marker.args
