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

# Runs on a node: where the secret shows that is in the file of the first argument. Files that only their
# owner may read do not count, nor does that file. A secret on a command line would itself be in sudo's log.
LEAKS = """
import json, os, pathlib, subprocess, sys
own = pathlib.Path(sys.argv[1])
secret = own.read_bytes().strip()
assert len(secret) > 15, "too short to be looked for"
found = []
for process in pathlib.Path("/proc").glob("[0-9]*"):
    for name in ("cmdline", "environ"):
        try:
            if secret in (process / name).read_bytes():
                found.append(f"{process}/{name}")
        except OSError:
            pass
if secret in subprocess.run(["journalctl", "--no-pager", "--output=export"], capture_output=True).stdout:
    found.append("journal")
for top in ("/etc", "/run", "/tmp", "/usr/local", "/var/lib/splitrail", "/var/log", "/root", "/home"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = pathlib.Path(folder, name)
            try:
                if path == own or not path.is_file() or path.is_symlink() or path.stat().st_size > 1 << 26:
                    continue
                if path.stat().st_mode & 0o077 and secret in path.read_bytes():
                    found.append(str(path))
            except OSError:
                pass
print(json.dumps(sorted(found)))
"""


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


@pytest.fixture
def leaks() -> Callable[[Host, str], list[str]]:
    """``leaks(host, path)``: where the secret of that file of a node shows, there or in the run record."""

    def look(host: Host, path: str) -> list[str]:
        found: list[str] = json.loads(host.check_output("python3 -c %s %s", LEAKS, path))
        secret = host.file(path).content.strip()
        record = Path(os.environ["SPLITRAIL_RUN_DIR"])
        files = [file for file in sorted(record.rglob("*")) if file.is_file()]
        assert files, f"{record} holds no run record to look at"
        return found + [str(file) for file in files if secret in file.read_bytes()]

    return look


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
