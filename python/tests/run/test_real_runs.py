"""The wrapper, the callback and the action on real ansible-playbook runs of a project made for it.

Three hosts on connection local, one behind a closed port. What a play does hangs on flag files, so that a
fault can be put right between a run and its resumption.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import splitrail
from splitrail.cli import app, show_status
from splitrail.run import record

PLUGINS = Path(splitrail.__file__).parent / "ansible"
PYTHON = sys.executable
SECRET = "correct-horse-battery"  # noqa: S105  # must turn up nowhere
DEADLINE = 30  # seconds for what takes about one

FIRST = """
- name: First
  hosts: all
  gather_facts: false
  tasks:
    - name: Judge the host
      splitrail_verdict:
        verb: first
        seconds: 0.5
        checks:
          - {name: first.always, subject: it, ok: true, measured: 1, required: 1}
          - name: first.flag
            subject: flag file
            ok: "{{ (playbook_dir ~ '/../bad-' ~ inventory_hostname) is not file }}"
            measured: 3
            required: 5
            unit: GiB
            hint: Remove the flag file.
- name: Later
  hosts: all
  gather_facts: false
  tasks:
    - name: Go on
      ansible.builtin.debug: {msg: on}
    - name: Say what the run's reader must know
      ansible.builtin.set_stats:
        data: {splitrail_notes: "{{ ['RIXL is not pinned'] if (playbook_dir ~ '/../open') is file else [] }}"}
        per_host: false
      run_once: true
"""

SECOND = """
- name: Second
  hosts: all
  gather_facts: false
  tasks:
    - name: Use {{ secret | default('none') }}
      ansible.builtin.command: "test {{ secret | default('none') }} = ''"
      no_log: true
      changed_when: true
      when: secret is defined
    - name: Wait as long as the flag says
      ansible.builtin.wait_for: {path: "{{ playbook_dir }}/../waiting", state: absent, timeout: 60, sleep: 1}
      tags: [waiter]
"""

STATUS = """
- name: Status
  hosts: n1
  gather_facts: false
  tasks:
    - ansible.builtin.set_stats:
        data:
          splitrail_status:
            ok: true
            endpoint: http://10.0.0.1:8000/v1
            nodes: [{address: 10.0.0.3, resources: {decode: 8}}]
            applications:
              - name: llm
                status: RUNNING
                message: ""
                deployments: [{name: "Decode:m", status: HEALTHY, running: 2, wanted: 3, nodes: [10.0.0.3]}]
"""


class Project:
    """The project in a folder of the test, and the commands run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "playbooks").mkdir()
        (root / "ansible.cfg").write_text(
            f"[defaults]\ninventory = hosts\naction_plugins = {PLUGINS}/action\n"
            f"callback_plugins = {PLUGINS}/callback\ncallbacks_enabled = splitrail_record\n"
            "host_key_checking = true\n[ssh_connection]\nretries = 0\n"
        )
        (root / "site.yml").write_text(
            "- import_playbook: playbooks/first.yml\n- import_playbook: playbooks/second.yml\n"
        )
        (root / "playbooks/first.yml").write_text(FIRST)
        (root / "playbooks/second.yml").write_text(SECOND)
        (root / "playbooks/status.yml").write_text(STATUS)
        self.hosts("n1", "n2")

    def hosts(self, *names: str, unreachable: str | None = None) -> None:
        lines = [f"{name} ansible_connection=local ansible_python_interpreter={PYTHON}" for name in names]
        if unreachable:
            lines.append(f"{unreachable} ansible_host=127.0.0.1 ansible_port={closed_port()}")
        (self.root / "hosts").write_text("\n".join(lines) + "\n")

    def flag(self, name: str, up: bool) -> None:
        flag = self.root / name
        flag.touch() if up else flag.unlink()

    def run(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, JSON document and what stderr said."""
        done = CliRunner().invoke(app, [*words, "--json"])
        return done.exit_code, json.loads(done.stdout), done.stderr

    def records(self) -> list[Path]:
        return [folder for folder, _ in record.newest_first(self.root / "runs")]

    def holds(self, text: str) -> list[Path]:
        """The files of the records that hold a text."""
        return [
            file
            for file in (self.root / "runs").rglob("*")
            if file.is_file() and text in file.read_text(encoding="utf-8")
        ]


def closed_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def hosts_of(folder: Path, play: str) -> set[str]:
    return {event["host"] for event in events(folder) if event["play"] == play}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    # The tests' own temporary folder, to see that nothing stays in it.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("SPLITRAIL_RUN_DIR", raising=False)
    return Project(tmp_path)


def test_an_ok_run(project: Project) -> None:
    code, document, _ = project.run("up", "-e", f"secret={SECRET}")
    assert code == 1, "the hidden task fails on purpose"
    assert "no_log" in document["run"]["failures"][0]["message"]
    assert document["run"]["extra_vars"] == ["secret"]

    code, document, said = project.run("up", "--tags", "all")
    assert (code, document["ok"], document["resume"]) == (0, True, None)
    assert document["run"]["ok"]
    assert document["run"]["hosts"] == ["n1", "n2"]
    assert [play["verb"] for play in document["run"]["plays"]] == ["first", "first", "second"]
    assert len(document["verdict"]["checks"]) == 4
    assert document["verdict"]["seconds"] == 0.5
    assert {event["host"] for event in events(Path(document["record"]))} == {"n1", "n2"}
    assert (Path(document["record"]) / "verdict.json").exists()
    assert "play 1/3 First | Judge the host" in said

    assert project.holds(SECRET) == []
    assert [file for file in (project.root / "tmp").rglob("*") if "ansible-local" not in str(file)] == []


def test_what_the_plays_leave_for_the_reader_ends_the_run_and_stands_in_its_record(project: Project) -> None:
    _, document, said = project.run("up")
    assert (document["run"]["notes"], "not pinned" in said) == ([], False)
    project.flag("open", up=True)
    code, document, said = project.run("up")
    assert (code, document["run"]["notes"]) == (0, ["RIXL is not pinned"])
    assert "RIXL is not pinned" in said
    by_hand, _ = playbook(project, "site.yml").communicate(timeout=DEADLINE)
    assert "[WARNING]: RIXL is not pinned" in by_hand


def test_a_failed_check_and_catching_up(project: Project) -> None:
    project.flag("bad-n2", True)
    code, document, said = project.run("up")
    assert code == 1
    (failure,) = document["run"]["failures"]
    assert (failure["host"], document["run"]["failed_play"]) == ("n2", "First")
    for part in (
        "first.flag (flag file): measured 3 GiB, required 5 GiB. Remove the flag file.",
        "FAILED n2",
    ):
        assert part in said
    assert "first.always" not in failure["message"]
    # The others went on without it ...
    assert hosts_of(Path(document["record"]), "Second") == {"n1"}

    project.flag("bad-n2", False)
    code, document, _ = project.run("up", "--resume")
    folder = Path(document["record"])
    assert code == 0
    assert document["run"]["resumes"] == project.records()[1].name
    # ... so it catches up alone, and then all go on.
    assert hosts_of(folder, "First") == {"n2"}
    assert hosts_of(folder, "Second") == {"n1", "n2"}

    code, document, _ = project.run("up", "--resume")
    assert code == 2
    assert "ended ok" in document["error"]


def test_a_verb_stopped_for_all_is_resumed_for_all_and_from_there_only(project: Project) -> None:
    (project.root / "playbooks/second.yml").write_text(SECOND + "  any_errors_fatal: true\n")
    code, _, _ = project.run("up", "-e", "secret=x")
    assert code == 1
    code, document, _ = project.run("up", "--resume")
    assert code == 0
    assert [play["name"] for play in document["run"]["plays"]] == ["Second"]
    assert hosts_of(Path(document["record"]), "Second") == {"n1", "n2"}


def test_plays_that_start_without_a_host_are_not_taken_for_the_others_going_on(project: Project) -> None:
    (project.root / "playbooks/first.yml").write_text(
        "- name: First\n  hosts: all\n  gather_facts: false\n  any_errors_fatal: true\n  tasks:\n"
        "    - ansible.builtin.ping:\n"
        "    - {name: Go on, ansible.builtin.debug: {msg: on}}\n"
    )
    project.hosts("n1", unreachable="n3")
    code, document, _ = project.run("up")
    assert code == 1
    assert [play["name"] for play in document["run"]["plays"]] == ["First", "Second"]
    assert hosts_of(Path(document["record"]), "Second") == set()

    project.hosts("n1", "n3")
    code, document, _ = project.run("up", "--resume")
    assert code == 0
    first = [event for event in events(Path(document["record"])) if event["play"] == "First"]
    assert {event["host"] for event in first if event["task"] == "Go on"} == {"n1", "n3"}


def test_unreachable_hosts(project: Project) -> None:
    ping = "- hosts: all\n  gather_facts: false\n  tasks: [{ansible.builtin.ping: }]\n"
    (project.root / "playbooks/first.yml").write_text(ping)
    project.hosts("n1", unreachable="n3")
    code, document, said = project.run("up")
    assert code == 1
    assert [(f["host"], f["status"]) for f in document["run"]["failures"]] == [("n3", "unreachable")]
    assert "Start sshd on the host" in said

    project.hosts(unreachable="n3")
    code, document, _ = project.run("up")
    assert code == 2
    assert "no host could be reached: n3" in document["run"]["error"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-i", "nonesuch"], "nonesuch: no such file or folder"),
        (["--limit", "nobody"], "leaves us with no hosts"),
        (["--tags", "typo"], "no task that ran carries the tag typo"),
        (["-e", "@nonesuch.yml"], "no such file"),
        (["-e", "word"], "write key=value"),
        (["--resume"], "no run of up"),
        (["--resume", "--limit", "n1"], "leave them out"),
        (["-i", "site.yml"], "Completely failed to parse inventory source"),
    ],
)
def test_what_cannot_run_says_why(project: Project, words: list[str], reason: str) -> None:
    code, document, said = project.run("up", *words)
    assert code == 2
    assert reason in str(document.get("error") or document["run"]["error"])
    assert reason in said


def test_a_playbook_that_cannot_be_read(project: Project) -> None:
    (project.root / "playbooks/second.yml").write_text("- hosts: all\n  tasks: [{nonesuch: {}}]\n")
    code, document, _ = project.run("up")
    assert code == 2
    assert "nonesuch" in document["run"]["error"]
    # Nothing was half done, and there is nothing to resume.
    assert document["run"]["plays"] == []
    assert document["resume"] is None


def test_without_ansible_the_cure_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    code, document, _ = project.run("up")
    assert code == 2
    assert "pip install -r requirements.txt" in document["run"]["error"]


def test_outside_a_project(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    code, document, _ = project.run("status")
    assert code == 2
    assert "change into the project's folder" in document["error"]


def test_check_mode_reports_the_same_checks_and_is_resumed_on_its_own(project: Project) -> None:
    project.flag("bad-n1", True)
    code, document, _ = project.run("up", "--check", "--limit", "n1")
    assert code == 1
    assert document["run"]["check"]
    assert [check["name"] for check in document["verdict"]["checks"] if not check["ok"]] == ["first.flag"]
    code, document, _ = project.run("up", "--resume")
    assert (code, "no run of up" in document["error"]) == (2, True)


def test_status(project: Project) -> None:
    code, document, _ = project.run("status")
    assert (code, document["last"]) == (0, None)
    assert document["serving"]["applications"][0]["status"] == "RUNNING"
    assert project.records() == []

    project.flag("bad-n1", True)
    project.run("up")
    code, document, _ = project.run("status")
    assert code == 1
    assert document["last"]["failed_hosts"] == ["n1"]
    assert document["last"]["resume"].endswith("--resume")
    out = io.StringIO()
    show_status(Console(file=out), document["last"], document["serving"], None)
    plain = out.getvalue()
    assert "failed in the play First: n1" in plain
    assert "checks failed: 1 of 4" in plain
    assert "Decode:m" in plain
    assert "2 of 3" in plain
    assert "10.0.0.3 (decode 8)" in plain

    project.hosts(unreachable="n1")
    (project.root / "playbooks/status.yml").write_text(STATUS.replace("  tasks:", "  tasks:\n    - ping:"))
    code, document, _ = project.run("status")
    assert code == 2
    assert document["error"].startswith("n1: ")


def playbook(project: Project, *words: str) -> subprocess.Popen[str]:
    """ansible-playbook by hand, without the wrapper."""
    return subprocess.Popen(
        [str(Path(PYTHON).parent / "ansible-playbook"), *words],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_by_hand_the_record_is_the_same(project: Project) -> None:
    started = playbook(
        project, "site.yml", "playbooks/second.yml", "-e", f"secret={SECRET}", "--limit", "n1,n2"
    )
    said, _ = started.communicate(timeout=DEADLINE)
    assert started.returncode == 2, said
    (folder,) = project.records()
    run = record.load(folder)
    # A failed playbook ends the command, so the second one never started.
    assert (run.verb, run.playbooks, run.limit) == ("up", ["site.yml"], "n1,n2")
    assert run.inventory == [str(project.root / "hosts")]
    assert run.failed_verb == "second"
    assert set(run.versions) == {"splitrail", "ansible-core", "python"}
    assert project.holds(SECRET) == []
    hidden = [event for event in events(folder) if event["status"] == "failed"]
    assert {event["task"] for event in hidden} == {"Use {{ secret | default('none') }}"}
    # The wrapper takes over what was started by hand.
    code, document, _ = project.run("up", "--resume")
    assert (code, document["run"]["resumes"], document["run"]["limit"]) == (0, folder.name, "n1,n2")


def test_an_empty_list_of_checks_fails_and_so_does_a_missing_record(project: Project) -> None:
    (project.root / "playbooks/empty.yml").write_text(
        "- hosts: n1\n  gather_facts: false\n  tasks:\n    - splitrail_verdict: {verb: v, checks: []}\n"
    )
    said, _ = playbook(project, "playbooks/empty.yml").communicate(timeout=DEADLINE)
    assert "v on n1: nothing was checked" in said
    config = project.root / "ansible.cfg"
    config.write_text(config.read_text().replace("callbacks_enabled", "; "))
    said, _ = playbook(project, "playbooks/first.yml").communicate(timeout=DEADLINE)
    assert "enable the callback splitrail_record" in said


@pytest.fixture
def waiting(project: Project) -> Iterator[Project]:
    """A project whose second verb waits until the flag goes."""
    project.flag("waiting", True)
    yield project
    project.flag("waiting", False)


def wait_until_second(project: Project) -> Path:
    """The record of the run that is now in the play Second."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        for folder in project.records():
            if any(play.name == "Second" for play in record.load(folder).plays):
                return folder
        time.sleep(0.05)
    raise AssertionError("the second play never started")


def test_ctrl_c_stops_cleanly_and_resume_goes_on(waiting: Project) -> None:
    command = subprocess.Popen(
        [PYTHON, "-m", "splitrail", "up"],
        cwd=waiting.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    folder = wait_until_second(waiting)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=DEADLINE)
    assert command.returncode == 130, said
    assert "interrupted" in said
    assert f"go on with: splitrail up -i {waiting.root}/hosts --resume" in said
    run = record.load(folder)
    assert (run.state, run.ok, run.error) == ("interrupted", False, "interrupted")
    assert run.ended is not None
    # Of the processes nothing is left, nor of their files.
    assert not record.is_held(folder)
    assert not list((waiting.root / "tmp").glob("splitrail-*"))

    (waiting.root / "waiting").unlink()
    code, document, _ = waiting.run("up", "--resume")
    (waiting.root / "waiting").touch()
    assert code == 0
    assert [play["name"] for play in document["run"]["plays"]] == ["Second"]


def test_a_killed_run_leaves_what_it_did(waiting: Project) -> None:
    started = playbook(waiting, "site.yml")
    folder = wait_until_second(waiting)
    assert record.load(folder).state == "running"
    started.kill()
    started.wait(timeout=DEADLINE)
    # Its workers see the flag go, end, and let go of the record.
    (waiting.root / "waiting").unlink()
    end = time.monotonic() + DEADLINE
    while record.is_held(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    (waiting.root / "waiting").touch()
    run = record.load(folder)
    assert (run.state, run.failed_verb) == ("interrupted", "second")
    assert hosts_of(folder, "First") == {"n1", "n2"}
    assert len(list((folder / "verdicts/first").iterdir())) == 2
