"""What a node says before, while and after its agent brings a model."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitrail.ansible.module_utils.splitrail_models.folder import bytes_needed, part_of
from splitrail.ansible.module_utils.splitrail_models.manifest import File, Manifest
from splitrail.ansible.modules import splitrail_model_swarm as swarm

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")
SECRETS = {"token": "run-token-4711", "source_token": "hub-token-4711"}


def manifest(size: int = 1000) -> Manifest:
    return Manifest.made_of("test", [File("a.safetensors", size, f"sha256:{64 * '0'}")])


@pytest.mark.parametrize(
    ("case", "ok"),
    [
        ((50, 30, 10), True),
        ((40, 30, 10), True),
        ((39.9, 30, 10), False),
        ((29, 30, 0), False),
        # Nothing is to come: a disk that is full of the model is no fault.
        ((0, 0, 10), True),
    ],
)
def test_room_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[float, int, float], ok: bool
) -> None:
    free, needed, reserve = case
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(free * GIB)))
    # The folder of models is not made yet: the disk is that of the nearest one that is.
    made = swarm.space_check(tmp_path / "srv/models/tiny", needed * GIB, reserve)
    assert made["ok"] is ok
    assert made["subject"] == str(tmp_path / "srv/models")
    assert (made["measured"], made["required"]) == (
        pytest.approx(free, abs=0.001),
        needed + reserve * bool(needed),
    )
    assert "model_store_path" in made["hint"]


def test_what_is_here_already_takes_no_room(tmp_path: Path) -> None:
    size = 1 << 20
    wanted, folder = manifest(size), tmp_path / "tiny"
    assert bytes_needed(folder, wanted) == size
    part_of(folder).mkdir()
    (part_of(folder) / "a.safetensors").write_bytes(b"x" * (size // 2))
    assert bytes_needed(folder, wanted) == size // 2
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x" * size)
    assert bytes_needed(folder, wanted) == 0


def test_a_model_that_came_passes() -> None:
    (made,) = swarm.finished_checks("/srv/m", {"state": "done"})
    assert made["ok"]


def test_an_agent_that_gave_up_fails_with_its_reason_and_each_wrong_file() -> None:
    wrong = {"path": "a.safetensors", "found": "sha256:1", "wanted": "sha256:2"}
    checks = swarm.finished_checks("/srv/m", {"state": "failed", "error": "no source", "wrong": [wrong]})
    assert [check["ok"] for check in checks] == [False, False]
    assert checks[0]["measured"] == "no source"
    assert (checks[1]["subject"], checks[1]["measured"], checks[1]["required"]) == (
        "/srv/m/a.safetensors",
        "sha256:1",
        "sha256:2",
    )


class Machine:
    """systemctl and systemd-run of a node: what was run, and what the unit's state is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.ran: list[list[str]] = []
        self.states = ["inactive"]
        monkeypatch.setattr(swarm, "run", self.run)
        monkeypatch.setattr(swarm, "HOME", home)
        monkeypatch.setattr(swarm, "JOB", home / "job.json")
        monkeypatch.setattr(swarm, "STATUS", home / "status.json")
        monkeypatch.setattr(swarm, "POLL_S", 0)
        self.home = home

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.ran.append(command)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return subprocess.CompletedProcess(command, 0, f"{state}\n", "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_the_job_is_for_roots_eyes_and_no_secret_is_on_a_command_line(machine: Machine) -> None:
    params = {"path": "/srv/models/tiny", "job": {"node": "n0"}, "rehash": False, **SECRETS}
    swarm.start(SimpleNamespace(params=params), manifest())
    job = machine.home / "job.json"
    assert stat.S_IMODE(job.stat().st_mode) == 0o600
    assert {key: json.loads(job.read_text())[key] for key in SECRETS} == SECRETS
    assert not any(
        secret in word for command in machine.ran for word in command for secret in SECRETS.values()
    )
    begun = machine.ran[-1]
    assert begun[0] == "systemd-run"
    assert "--property=ProtectSystem=strict" in begun
    assert f"--property=ReadWritePaths={machine.home} /srv/models" in begun


def test_it_waits_through_a_restart_and_says_when_the_agent_is_gone(machine: Machine) -> None:
    machine.states = ["active", "activating", "active", "inactive", "inactive"]
    said = swarm.wait()
    assert said["state"] == "failed"
    assert "journalctl" in said["error"]
    assert len(machine.ran) == 5


def test_it_returns_the_agents_last_word(machine: Machine) -> None:
    last: dict[str, Any] = {"state": "done", "from_peers": 7}
    (machine.home / "status.json").write_text(json.dumps(last))
    assert swarm.wait() == last
    assert machine.ran == []
