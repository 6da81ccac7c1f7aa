"""When a run goes on without the hosts that failed in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from splitrail.daytwo.partial import Decision, decide, mark
from splitrail.project import Project
from splitrail.run.record import Failure, Play, Run

VERBS = ("preflight", "provision", "fabric", "cluster")
Decide = Callable[..., Decision]


def failed(host: str, verb: str = "provision", **more: Any) -> Failure:
    return Failure(
        host=host, status="failed", play=VERBS.index(verb), role="r", task="t", message="m", **more
    )


def made(*failures: Failure, **more: Any) -> Run:
    plays = [Play(name=verb.title(), verb=verb) for verb in VERBS]
    return Run(
        verb="up",
        state="ended",
        started=datetime.now(UTC),
        inventory=["i"],
        plays=plays,
        failures=list(failures),
        **more,
    )


@pytest.fixture
def judged(tmp_path: Path) -> Decide:
    """Eight hosts that serve nothing, and so fit without any but the head."""
    (tmp_path / "roles").mkdir()
    hosts = "\n".join(f"    n{number}: {{ansible_host: 10.0.0.{number}}}" for number in range(1, 9))
    (tmp_path / "hosts.yml").write_text(
        f"all:\n  vars: {{cluster_name: c}}\n  hosts:\n{hosts}\n  children: {{head: {{hosts: {{n1: }}}}}}\n"
    )

    def judge(run: Run, **more: Any) -> Decision:
        return decide(Project(tmp_path), str(tmp_path / "hosts.yml"), run, tmp_path / "runs/r1", **more)

    return judge


def test_a_host_that_failed_for_itself_is_left_out_with_its_evidence(judged: Decide) -> None:
    run = made(failed("n2"), failed("n3", run_once=True))
    entry = judged(run).hosts["n2"]
    assert (entry.reason, entry.by) == ("failed in provision", "run")
    assert entry.evidence is not None
    assert (entry.evidence.record, entry.evidence.verb, entry.evidence.message) == ("r1", "provision", "m")

    # What was said for all of them is answered with that.
    mark(run, ["n2"])
    assert (run.quarantined, run.open_failures, run.through) == (["n2"], [], True)


def test_a_host_that_cannot_be_reached_is_left_out_too(judged: Decide) -> None:
    gone = failed("n2", "preflight").model_copy(update={"status": "unreachable"})
    assert judged(made(gone)).hosts["n2"].reason == "could not be reached in preflight"


@pytest.mark.parametrize(
    ("run", "more", "why"),
    [
        (made(failed("n1")), {}, "n1 is the head"),
        (made(failed("n2"), failed("n3"), failed("n4")), {}, "3 of 8 hosts failed"),
        (made(failed("n2")), {"gone_on": {"provision"}}, "other hosts failed in this verb before"),
        (made(failed("n2")), {"extra": {"splitrail_max_fail_percentage": 0}}, "allows 0"),
        # Nothing that anybody has to be told: no host failed for itself.
        (made(failed("n2", "cluster")), {}, ""),
        (made(failed("n2", run_once=True)), {}, ""),
        (made(failed("n2"), check=True), {}, ""),
        (made(), {}, ""),
    ],
)
def test_a_run_stops(judged: Decide, run: Run, more: dict[str, Any], why: str) -> None:
    decision = judged(run, **more)
    assert decision.hosts == {}
    assert why in decision.why
    assert bool(why) == bool(decision.why)


def test_more_may_fail_where_that_is_said(judged: Decide) -> None:
    run = made(failed("n2"), failed("n3"), failed("n4"))
    assert sorted(judged(run, extra={"splitrail_max_fail_percentage": 40}).hosts) == ["n2", "n3", "n4"]


def test_only_the_failed_verb_counts(judged: Decide) -> None:
    assert set(judged(made(failed("n2"), failed("n3", "fabric"))).hosts) == {"n2"}
