"""What the Tab key offers, asked as bash asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitrail.cli import app

HOSTS = """
all:
  children:
    head: {hosts: {one: }}
    workers:
      children:
        prefill: {hosts: {two: {ansible_host: 10.0.0.2}}}
        decode: {hosts: {three: }}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in {
        "ansible.cfg": "[defaults]\ninventory = inventories/lab\n",
        "site.yml": "[]\n",
        "inventories/lab/hosts.yml": HOSTS,
        "inventories/broken/hosts.yml": "all: [\n",
        "inventories/releases/cpu.yml": "{}\n",
        "inventories/topologies/lab-1p1d.yml": "{}\n",
        "inventories/workloads/chat.yml": "{}\n",
        "roles/thing/tasks/main.yml": "- tags: [thing_install, thing_verify, other_install]\n",
        "runs/20260101T000000Z/run.json": "{}",
        "runs/20260102T000000Z/run.json": "{}",
        "runs/unfinished/note": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(*words: str) -> list[str]:
    """What bash gets for a line; the last word is begun."""
    environment = {
        "_SPLITRAIL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["splitrail", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = CliRunner(env=environment).invoke(app, [], prog_name="splitrail")
    return done.stdout.split()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        (("fab",), ["fabric"]),
        (("up", "-i", "inv"), ["inventories/broken", "inventories/lab"]),
        (("lab", "status", "-i", "inventories/l"), ["inventories/lab"]),
        (("up", "--limit", "t"), ["three", "two"]),
        (("up", "--limit", "one,t"), ["one,three", "one,two"]),
        (("up", "--limit", "d"), ["decode"]),
        (("up", "-i", "inventories/lab", "--limit", "pre"), ["prefill"]),
        (("up", "--tags", "thing"), ["thing_install", "thing_verify"]),
        (("runs", "show", "2"), ["20260102T000000Z", "20260101T000000Z"]),
        (("lab", "power", "off", "o"), ["one"]),
        (("plan", "--topology", "inv"), ["inventories/topologies/lab-1p1d.yml"]),
        (("bench", "search", "-w", "c"), ["chat"]),
        (("release", "check", "inv"), ["inventories/releases/cpu.yml"]),
    ],
    ids=" ".join,
)
def test_values_are_offered(line: tuple[str, ...], found: list[str]) -> None:
    assert offered(*line) == found


@pytest.mark.usefixtures("project")
def test_nothing_is_offered_for_what_cannot_be_read() -> None:
    assert offered("up", "-i", "inventories/broken", "--limit", "o") == []
    assert offered("up", "-i", "inventories/none", "--limit", "o") == []


def test_nothing_is_offered_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered("up", "-i", "inv") == []
