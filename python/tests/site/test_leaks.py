"""The search for secrets finds one in every place where it looks, and only where one is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.site.leaks import leaks

SECRET = "5ca1ab1e5ca1ab1e5ca1ab1e"  # noqa: S105  planted by these tests alone


class Host:
    """A made-up node and controller: folders, processes, and a command's output."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = b"Started ray.service\n"
        self.write("proc/7/cmdline", "ray\0start\0")
        self.write("proc/7/environ", "RAY_AUTH_TOKEN_PATH=/etc/ray/token\0")
        self.write("proc/sys/kernel/hostname", "not a process\n")
        self.write("etc/systemd/system/ray.service", "[Service]\n")
        self.write("etc/ray/token", f"{SECRET}\n", 0o600)
        self.write("var/log/syslog", "nothing\n")
        self.write("runs/1/events.jsonl", "{}\n")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def plant(self, path: str, mode: int = 0o644) -> None:
        self.write(path, f"before {SECRET} after\n", mode)

    def found(self) -> list[str]:
        folders = [self.root / name for name in ("etc", "var/log", "runs")]
        places = leaks(
            {"token": SECRET}, proc=self.root / "proc", folders=folders, outputs={"journal": self.output}
        )
        return [place.replace(f"{self.root}/", "") for place in places]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_file_of_its_owner_is_no_leak(host: Host) -> None:
    assert host.found() == []


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("proc/7/cmdline", 0o644),
        ("proc/7/environ", 0o400),
        ("etc/systemd/system/ray.service", 0o644),
        ("etc/systemd/system/ray.service.d/own.conf", 0o600),
        ("etc/ray/ray.env", 0o640),
        ("var/log/syslog", 0o644),
        ("runs/1/verdicts/cluster/lab-head.json", 0o600),
        ("runs/1/events.jsonl", 0o644),
    ],
)
def test_one_that_is_planted_is_found_and_named(host: Host, path: str, mode: int) -> None:
    host.plant(path, mode)
    assert host.found() == [f"{path}: token"]


def test_a_log_that_a_command_prints_is_looked_at(host: Host) -> None:
    host.output += f"token {SECRET}\n".encode()
    assert host.found() == ["journal: token"]


def test_what_is_too_short_or_missing_is_not_looked_for_in_vain(host: Host) -> None:
    for secrets in ({}, {"token": "short"}, {"token": ""}):
        with pytest.raises(ValueError, match="characters or more are needed"):
            leaks(secrets, proc=host.root / "proc", folders=[], outputs={})


def test_as_a_program_it_takes_secrets_from_standard_input_and_sees_this_machine(tmp_path: Path) -> None:
    (tmp_path / "open").write_text(SECRET)
    asked = {
        "secrets": {"token": SECRET},
        "folders": [str(tmp_path)],
        "commands": {"echo": [sys.executable, "-c", f"print('{SECRET}')"]},
    }
    program = Path(__file__).with_name("leaks.py")
    with subprocess.Popen(["sleep", "60"], env={"TOKEN": SECRET}) as victim:
        done = subprocess.run(
            [sys.executable, str(program)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=True,
        )
        victim.kill()
    found = json.loads(done.stdout)
    assert {"echo: token", f"{tmp_path}/open: token", f"/proc/{victim.pid}/environ: token"} <= set(found)
