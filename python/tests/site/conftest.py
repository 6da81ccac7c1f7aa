"""The whole site on the lab: made once for all tests of this folder, and taken down after them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "inventories/lab"
# Where somebody may write a secret down on a node, and what tells of its units and containers.
FOLDERS = ["/etc", "/run", "/tmp", "/usr/local", "/var/lib/splitrail", "/var/log", "/root", "/home"]
COMMANDS = {
    "journal": ["journalctl", "--no-pager", "--output=export"],
    "units": ["systemctl", "show", "--all", "*"],
    "containers": ["sh", "-c", "podman ps --all --quiet | xargs --no-run-if-empty podman inspect"],
}
ADDRESSES = {"lab-head": "10.87.0.11", "lab-prefill": "10.87.0.12", "lab-decode": "10.87.0.13"}


class Site:
    """The lab's cluster, through the commands that a user has; ``folder`` is for files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
        """Run `splitrail COMMAND`; its progress goes to this test's own output."""
        return subprocess.run(
            [sys.executable, "-m", "splitrail", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def verb(self, verb: str, *options: str) -> tuple[int, dict[str, Any]]:
        """Run a verb on the lab's inventory; its exit code and its report."""
        done = self.run(verb, "-i", str(INVENTORY), "--json", *options)
        return done.returncode, json.loads(done.stdout)

    def lab(self, *command: str) -> None:
        """Run a command of the lab, which must succeed."""
        done = self.run("lab", command[0], "-i", str(INVENTORY), *command[1:])
        assert done.returncode == 0, done.stdout

    def host(self, name: str) -> Host:
        """A node as testinfra sees it, as root."""
        keys = ROOT / ".lab/lab"
        config = self.folder / "ssh_config"
        config.write_text(f"Host *\n  UserKnownHostsFile {keys / 'known_hosts'}\n  ConnectTimeout 10\n")
        return testinfra.get_host(
            f"ssh://splitrail@{ADDRESSES[name]}?sudo=True",
            ssh_config=str(config),
            ssh_identity_file=str(keys / "id_ed25519"),
        )

    def leaks(self, name: str, secrets: dict[str, str]) -> list[str]:
        """Where secrets show on a node, by ``leaks.py`` there; they travel on standard input alone."""
        keys = ROOT / ".lab/lab"
        program = Path(__file__).with_name("leaks.py").read_text()
        asked = {"secrets": secrets, "folders": FOLDERS, "commands": COMMANDS}
        done = subprocess.run(
            [
                *("ssh", "-o", f"UserKnownHostsFile={keys / 'known_hosts'}", "-i", str(keys / "id_ed25519")),
                f"splitrail@{ADDRESSES[name]}",
                "sudo python3 -c 'import json, sys; exec(json.loads(sys.stdin.readline()))'",
            ],
            input=json.dumps(program) + "\n" + json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    @property
    def key(self) -> str:
        """The lab's API key."""
        return (ROOT / ".secrets/lab/api_key").read_text().strip()

    def ask(self, prompt: str, *, tokens: int = 16, timeout_s: float = 240) -> list[int]:
        """The tokens that the endpoint answers to a prompt at temperature 0."""
        answer = httpx.post(
            f"http://{ADDRESSES['lab-head']}:8000/v1/chat/completions",
            json={
                "model": "lab-qwen3",
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=timeout_s,
            trust_env=False,
        )
        answer.raise_for_status()
        return list(answer.json()["choices"][0]["token_ids"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The lab, fresh and empty."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make machines: run `make test`")
    site = Site(tmp_path_factory.mktemp("site"))
    site.lab("down")
    site.lab("up")
    yield site
    site.lab("down")
