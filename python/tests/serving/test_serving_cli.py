"""`splitrail canary`, `rollback`, `rebalance` and `diff`, as far as they need no cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.run.execute import Report
from splitrail.run.playbook import Options
from splitrail.run.record import Run, Timings
from splitrail.serving import cli

Json = dict[str, Any]


class Cluster:
    """What the playbooks would find and do: the answers to looks, and the runs that were asked for."""

    def __init__(self) -> None:
        self.looks: list[Json | None] = []
        self.runs: list[tuple[str, Json]] = []
        self.code = 0

    def ask(
        self, _project: Any, playbook: str, _options: Options, key: str
    ) -> tuple[Json | None, str | None]:
        assert playbook.startswith("playbooks/")
        assert key.startswith("splitrail_")
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return found, None if found else "the head does not answer"

    def execute(self, _project: Any, verb: str, playbook: str, options: Options, **_: Any) -> Report:
        assert playbook == f"playbooks/{verb}.yml"
        self.runs.append((verb, {k: v for text in options.extra_vars for k, v in json.loads(text).items()}))
        run = Run.model_validate({"verb": verb, "started": "2026-01-01T00:00:00Z", "inventory": ["x"]})
        return Report(
            self.code, Path("runs/one"), run, None, Timings(), resume="splitrail rebalance --resume"
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A project whose playbooks are not run."""
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "site.yml").write_text("[]\n")
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path)
    one = Cluster()
    monkeypatch.setattr(cli, "ask", one.ask)
    monkeypatch.setattr(cli, "execute", one.execute)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield one


def call(*words: str) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*words, "-i", "lab"])
    return done.exit_code, done.output


def looked(requests: int = 0, errors: int = 0, first: float = 100, *, canary: bool = True) -> Json:
    """What playbooks/canary.yml hands out, with the canary in slot b."""

    def slot(count: int, bad: int, ms: float) -> Json:
        names = [f"{name}_p{part}_ms" for name in ("first_byte", "e2e") for part in (50, 90)]
        share = bad / count if count else 0.0
        return {"requests": count, "errors": bad, "error_share": share, **dict.fromkeys(names, ms)}

    ratio = {"prefill": 1, "decode": 2}
    return {
        "live": {"name": "llm-a", "slot": "a", "ratio": ratio},
        "canary": {"name": "llm-b", "slot": "b", "ratio": ratio} if canary else None,
        "share_b": 10,
        "slots": {"a": slot(900, 0, 100), "b": slot(requests, errors, first)},
    }


def test_a_ratio_is_handed_on_and_no_resume_is_offered(cluster: Cluster) -> None:
    code, said = call("rebalance", "--to", "1P2D", "-e", '{"x": 1}')
    assert (code, cluster.runs) == (0, [("rebalance", {"x": 1, "rebalance_to": "1P2D"})])
    assert "--resume" not in said


def test_the_verbs_run_their_playbooks_and_end_as_they_do(cluster: Cluster) -> None:
    cluster.code = 1
    for words in (
        ["canary", "start", "--weight", "20"],
        ["canary", "promote"],
        ["canary", "abort"],
        ["rollback"],
    ):
        assert call(*words)[0] == 1
    assert cluster.runs == [
        ("canary", {"canary_action": "start", "canary_weight": 20}),
        ("canary", {"canary_action": "promote"}),
        ("canary", {"canary_action": "abort"}),
        ("rollback", {}),
    ]


def test_both_slots_are_shown(cluster: Cluster) -> None:
    cluster.looks = [looked(50, errors=2)]
    code, said = call("canary", "status")
    assert code == 0
    rows = [line.split() for line in said.splitlines()]
    assert rows[1][:10] == ["llm-a", "live", "1", "prefill,", "2", "decode", "90", "%", "900", "0"]
    assert rows[2][:10] == ["llm-b", "canary", "1", "prefill,", "2", "decode", "10", "%", "50", "2"]
    assert json.loads(call("canary", "status", "--json")[1])["slots"]["b"]["errors"] == 2


def test_a_good_canary_is_promoted_once_it_has_its_requests(cluster: Cluster) -> None:
    cluster.looks = [looked(10), looked(60), looked(100)]
    code, said = call("canary", "judge")
    assert (code, cluster.runs) == (0, [("canary", {"canary_action": "promote"})])
    assert "wait: 60 of 100 requests answered" in said


@pytest.mark.parametrize("bad", [looked(50, errors=9), looked(100, first=900)])
def test_a_bad_canary_is_aborted_and_that_is_no_success(cluster: Cluster, bad: Json) -> None:
    cluster.looks = [bad]
    assert call("canary", "start", "--auto")[0] == 1
    assert [own["canary_action"] for _, own in cluster.runs] == ["start", "abort"]


def test_a_canary_without_requests_is_left_running(cluster: Cluster) -> None:
    cluster.looks = [looked()]
    code, said = call("canary", "judge", "--patience", "1")
    assert (code, cluster.runs) == (1, [])
    assert "undecided after 1 s; the canary runs on" in said


def test_what_cannot_be_asked_is_could_not_run(cluster: Cluster) -> None:
    cluster.looks = [None]
    for words in (["canary", "status"], ["canary", "judge"], ["diff"]):
        code, said = call(*words)
        assert (code, "the head does not answer" in said) == (2, True)
    cluster.looks = [looked(canary=False)]
    assert call("canary", "judge")[0] == 2


def test_a_difference_is_shown_and_is_code_1(cluster: Cluster) -> None:
    cluster.looks = [{"runs": "a\nb\n", "declared": "a\nc\n"}]
    code, said = call("diff")
    assert code == 1
    assert said.splitlines()[:2] == ["--- runs", "+++ declared"]
    assert "-b" in said
    assert "+c" in said
    cluster.looks = [{"runs": "a\n", "declared": "a\n"}]
    assert call("diff") == (0, "")
