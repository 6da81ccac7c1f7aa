from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from splitrail.project import Project
from splitrail.run import playbook
from splitrail.run.playbook import CannotRun, Interrupts, Options, Step, parse_extra_vars


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("a=1", {"a": "1"}),
        ("a=1 b='two words' c=", {"a": "1", "b": "two words", "c": ""}),
        ("url=http://h/?q=1", {"url": "http://h/?q=1"}),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ('{"a": null}', {"a": None}),
    ],
)
def test_extra_vars_read_as_ansible_reads_them(given: str, values: dict[str, Any]) -> None:
    assert parse_extra_vars(given) == values


@pytest.mark.parametrize(
    "given", ["", "hunter2", "a=1 hunter2", "a='hunter2", "{hunter2", "{hunter2: [}", "1=x"]
)
def test_malformed_extra_vars_are_refused_without_showing_them(given: str) -> None:
    with pytest.raises(CannotRun) as caught:
        parse_extra_vars(given)
    assert "hunter2" not in str(caught.value)


def test_nothing_that_may_be_secret_is_on_the_command_line(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text("x: 1")
    options = Options(
        "/inv", limit="n1", extra_vars=("token=hunter2", f"@{own}"), tags=("a", "b"), check=True
    )
    words = playbook._arguments(Step((Path("site.yml"),)), options, tmp_path)
    file = tmp_path / "vars-0.json"
    assert words[:6] == ["-i", "/inv", "-e", f"@{file}", "-e", f"@{own}"]
    assert words[6:] == ["--limit", "n1", "--tags", "a", "--tags", "b", "--check"]
    assert json.loads(file.read_text()) == {"token": "hunter2"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_hosts_of_a_step_win_over_the_limit(tmp_path: Path) -> None:
    step = Step((Path("site.yml"),), hosts=("n1", "n2"))
    words = playbook._arguments(step, Options("/inv", limit="all"), tmp_path)
    assert words == ["-i", "/inv", "--limit", f"@{tmp_path}/limit"]
    assert (tmp_path / "limit").read_text() == "n1\nn2\n"


def test_interrupts_grow_harder(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    interrupts = Interrupts(lambda: None)
    stopper = playbook._Stopper(interrupts)
    stopper.pid = 42
    assert not stopper.must_kill()
    interrupts.count = 1
    assert not stopper.must_kill()
    assert not stopper.must_kill()
    assert sent == [(42, signal.SIGINT)]
    interrupts.count = 2
    assert not stopper.must_kill()
    assert sent[1:] == [(42, signal.SIGTERM)]
    interrupts.count = 3
    assert stopper.must_kill()


def test_before_ansible_has_begun_it_is_ended_at_once() -> None:
    interrupts = Interrupts(lambda: None)
    interrupts.count = 1
    assert playbook._Stopper(interrupts).must_kill()


def test_an_ansible_that_is_gone_needs_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_pid: int, _number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    interrupts = Interrupts(lambda: None)
    interrupts.count = 1
    stopper = playbook._Stopper(interrupts)
    stopper.pid = 42
    assert not stopper.must_kill()


def test_the_handlers_are_put_back_and_the_first_signal_is_told_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    told: list[int] = []
    interrupts = Interrupts(lambda: told.append(1))
    with interrupts.caught():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
    assert (interrupts.count, told) == (2, [1])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("cpus", "free_mib", "wanted"),
    [(2, 16_000, 32), (16, 64_000, 128), (64, 512_000, 256), (64, 16_000, 62), (64, 1_000, 32)],
)
def test_forks_are_chosen_by_the_machine(tmp_path: Path, cpus: int, free_mib: int, wanted: int) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults]\nforks = 32\n")
    assert playbook.forks(Project(tmp_path), cpus, free_mib) == wanted


def test_the_users_own_forks_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    monkeypatch.setenv("ANSIBLE_FORKS", "7")
    assert playbook._environment(Project(tmp_path), tmp_path)["ANSIBLE_FORKS"] == "7"
