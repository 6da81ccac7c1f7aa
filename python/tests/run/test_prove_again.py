"""A run that the gate stops because a proof has become void goes back and makes it again."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import splitrail
from splitrail.cli import app
from splitrail.run.record import Failure, Play, Run
from splitrail.run.resume import proof_is_void
from splitrail.verdict import Check, Verdict, verdict_file

PLUGINS = Path(splitrail.__file__).parent / "ansible"
# Each pass of the verb adds a line, so that the next one knows how often it was proven.
FABRIC = """
- name: Prove
  hosts: all
  gather_facts: false
  tasks:
    - name: Count
      ansible.builtin.lineinfile:
        path: "{{ playbook_dir }}/../proofs"
        line: "{{ now() }}"
        create: true
        mode: "0644"
"""
# A gate that asks for so many proofs; its verdict is filed as splitrail_gate files it.
CLUSTER = """
- name: Cluster
  hosts: all
  gather_facts: false
  vars:
    made: "{{ lookup('ansible.builtin.file', playbook_dir ~ '/../proofs').splitlines() | length }}"
    passed: "{{ made | int >= WANTED }}"
    check: {name: gate.NAME, host: n1, subject: s, ok: "{{ passed | bool }}", measured: m, required: r}
  tasks:
    - name: Make the folder
      ansible.builtin.file:
        path: "{{ lookup('ansible.builtin.env', 'SPLITRAIL_RUN_DIR') }}/verdicts/gate"
        state: directory
        mode: "0755"
    - name: File
      ansible.builtin.copy:
        mode: "0644"
        dest: "{{ lookup('ansible.builtin.env', 'SPLITRAIL_RUN_DIR') }}/verdicts/gate/n1.json"
        content: "{{ {'ok': passed | bool, 'checks': [check]} | to_json }}"
    - name: Stop
      ansible.builtin.fail: {msg: not proven}
      when: not passed | bool
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPLITRAIL_RUN_DIR", raising=False)
    for folder in ("roles", "playbooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ansible.cfg").write_text(
        "[defaults]\ninventory = hosts.yml\n"
        f"callback_plugins = {PLUGINS}/callback\ncallbacks_enabled = splitrail_record\n"
    )
    (tmp_path / "site.yml").write_text(
        "- import_playbook: playbooks/fabric.yml\n- import_playbook: playbooks/cluster.yml\n"
    )
    (tmp_path / "playbooks/fabric.yml").write_text(FABRIC)
    (tmp_path / "hosts.yml").write_text(
        "all:\n  vars: {cluster_name: c, ansible_connection: local, "
        f"ansible_python_interpreter: {sys.executable}}}\n"
        "  children:\n    head: {hosts: {n1: }}\n"
    )
    return tmp_path


def up(project: Path, wanted: int, name: str = "boot", *words: str) -> tuple[int, dict[str, Any]]:
    text = CLUSTER.replace("WANTED", str(wanted)).replace("NAME", name)
    (project / "playbooks/cluster.yml").write_text(text)
    done = CliRunner().invoke(app, ["up", *words, "--json"])
    return done.exit_code, json.loads(done.stdout)


def plays(document: dict[str, Any]) -> list[str]:
    return [play["verb"] for play in document["run"]["plays"]]


def test_a_node_that_booted_since_is_proven_again_and_the_run_ends_well(project: Path) -> None:
    code, document = up(project, 2)
    assert (code, plays(document)) == (0, ["fabric", "cluster", "fabric", "cluster"])
    assert document["run"]["notes"] == ["proven again, as its proof had become void: n1"]
    assert document["verdict"]["ok"] is True


def test_a_resumed_run_goes_back_too(project: Path) -> None:
    assert up(project, 9, "nic")[0] == 1
    code, document = up(project, 2, "boot", "--resume")
    assert (code, plays(document)) == (0, ["cluster", "fabric", "cluster"])


def test_it_is_proven_again_once(project: Path) -> None:
    code, document = up(project, 9)
    assert (code, plays(document)) == (1, ["fabric", "cluster"] * 2)


def test_what_a_person_must_look_at_is_not_proven_away(project: Path) -> None:
    code, document = up(project, 2, "nic")
    assert (code, plays(document)) == (1, ["fabric", "cluster"])


def failed(folder: Path, **checks: tuple[str, ...]) -> tuple[str, ...]:
    """What proof_is_void says of a run that these hosts stopped, each by these checks of the gate."""
    for host, names in checks.items():
        found = [
            Check(name=name, host=host, subject="s", ok=name == "ok", measured="m", required="r")
            for name in names
        ]
        if found:
            Verdict.of(found).save(verdict_file(folder, "gate", host))
    failures = [
        Failure(host=host, status="failed", play=0, role=None, task="t", message="m") for host in checks
    ]
    run = Run(
        verb="up",
        started=datetime.now(UTC),
        inventory=["/inv"],
        plays=[Play(name="Cluster", verb="cluster")],
        failures=failures,
    )
    return proof_is_void(run, folder)


def test_a_proof_is_void_by_a_boot_or_its_age_alone(tmp_path: Path) -> None:
    assert failed(tmp_path / "a", n1=("gate.boot",), n2=("gate.age", "ok")) == ("n1", "n2")
    assert failed(tmp_path / "b", n1=("gate.boot", "gate.nic")) == ()
    assert failed(tmp_path / "c", n1=("gate.boot",), n2=()) == ()
    assert failed(tmp_path / "d", n1=("gate.boot",), n2=("ok",)) == ()
    assert failed(tmp_path / "e") == ()
