"""A run that goes on without a host, on real ansible-playbook runs of a project made for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import splitrail
from splitrail.cli import app
from splitrail.run import record

PLUGINS = Path(splitrail.__file__).parent / "ansible"
PLAY = """
- name: {verb} each
  hosts: all
  gather_facts: false
  tasks:
    - name: Fail where the flag is
      ansible.builtin.fail: {{msg: "the flag is up"}}
      when: (playbook_dir ~ '/../{verb}-' ~ inventory_hostname) is file
    - name: Stop unless every host passed
      ansible.builtin.assert: {{that: ansible_play_hosts | length == ansible_play_hosts_all | length}}
      run_once: true
"""


class Made:
    """The project in a folder of the test, and the commands run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "roles").mkdir()
        (root / "playbooks").mkdir()
        (root / "inv").mkdir()
        (root / "ansible.cfg").write_text(
            f"[defaults]\ninventory = inv\ninventory_plugins = {PLUGINS}/inventory\n"
            f"callback_plugins = {PLUGINS}/callback\ncallbacks_enabled = splitrail_record\n"
        )
        verbs = ("provision", "cluster")
        (root / "site.yml").write_text(
            "".join(f"- import_playbook: playbooks/{verb}.yml\n" for verb in verbs)
        )
        for verb in verbs:
            (root / f"playbooks/{verb}.yml").write_text(PLAY.format(verb=verb))
        (root / "inv/hosts.yml").write_text(
            "all:\n  vars: {cluster_name: c, ansible_connection: local, "
            f"ansible_python_interpreter: {sys.executable}}}\n"
            "  children:\n    head: {hosts: {n1: }}\n    workers: {hosts: {n2: , n3: , n4: }}\n"
        )

    def run(self, *words: str) -> tuple[int, dict[str, Any], str]:
        done = CliRunner().invoke(app, [*words, "--json"])
        return done.exit_code, json.loads(done.stdout), done.stderr

    def flag(self, name: str) -> None:
        (self.root / name).touch()

    def hosts_of(self, document: dict[str, Any], play: str) -> set[str]:
        lines = (Path(document["record"]) / "events.jsonl").read_text().splitlines()
        return {event["host"] for event in map(json.loads, lines) if event["play"] == play}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPLITRAIL_RUN_DIR", raising=False)
    return Made(tmp_path)


def test_the_others_go_on_and_the_run_counts_as_failed(project: Made) -> None:
    project.flag("provision-n3")
    # A file that is named alone is without what lies beside it, unless the suite adds that.
    code, document, said = project.run("up", "-i", "inv/hosts.yml")
    run = document["run"]
    assert (code, run["quarantined"], document["resume"], run["error"]) == (1, ["n3"], None, None)
    assert "QUARANTINE: n3 (failed in provision" in said
    assert "IN QUARANTINE, and left out from now on: n3" in said
    # The verb in which it failed is made again by the others together, and all that follows.
    assert [play["verb"] for play in run["plays"]] == ["provision", "provision", "cluster"]
    assert project.hosts_of(document, "cluster each") == {"n1", "n2", "n4"}

    code, document, _ = project.run("up", "--resume", "-i", "inv/hosts.yml")
    assert (code, "nothing to resume: all are through" in document["error"]) == (2, True)
    _, document, _ = project.run("quarantine", "list")
    told = document["hosts"]["n3"]["evidence"]
    assert (told["message"], told["task"]) == ("the flag is up", "Fail where the flag is")
    assert (project.root / "runs" / told["record"] / "run.json").exists()

    # By hand it is left out too, and said.
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/cluster.yml"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]: left out, in quarantine: n3 (failed in provision" in done.stdout + done.stderr
    (_, run), *_ = record.newest_first(project.root / "runs")
    assert (run.hosts, run.notes[0][:29]) == (["n1", "n2", "n4"], "left out, in quarantine: n3 (")


def test_a_run_that_cannot_go_on_names_why_and_quarantines_nobody(project: Made) -> None:
    project.flag("provision-n1")
    code, document, said = project.run("up")
    assert (code, document["run"]["quarantined"]) == (1, [])
    assert "not gone on without n1: the cluster does not work without: n1 is the head" in said
    assert document["resume"].endswith("--resume")
    assert not (project.root / "inv/quarantine.yml").exists()


def test_what_may_not_be_left_out_is_refused(project: Made) -> None:
    done = CliRunner().invoke(app, ["quarantine", "add", "n1", "--reason", "no fan"])
    assert (done.exit_code, "n1 is the head" in done.stderr) == (1, True)
    done = CliRunner().invoke(app, ["quarantine", "add", "n9", "--reason", "no fan"])
    assert (done.exit_code, "n9: no host of" in done.stderr) == (2, True)
    assert not (project.root / "inv/quarantine.yml").exists()
