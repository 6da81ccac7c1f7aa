from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from splitrail.project import Project
from splitrail.run.playbook import CannotRun, Step
from splitrail.run.record import Failure, Play, Run, hold
from splitrail.run.resume import plan, remaining_steps

VERBS = [(name, Path(f"{name}.yml")) for name in ("preflight", "provision", "fabric", "serve")]


def make(
    plays: str, *lost: tuple[str, int], state: Literal["ended", "running", "interrupted"] = "ended"
) -> Run:
    """A run whose failures let the others go on, where any play came after them."""
    last = len(plays.split()) - 1
    return Run(
        verb="up",
        state=state,
        started=datetime.now(UTC),
        inventory=["/inv"],
        hosts=["n1", "n2", "n3"],
        plays=[Play(name=verb.title(), verb=verb) for verb in plays.split()],
        failures=[
            Failure(
                **{"host": host, "status": "failed", "play": play, "others_went_on": play < last},
                **{"role": None, "task": "t", "message": "m"},
            )
            for host, play in lost
        ],
    )


def paths(*names: str) -> tuple[Path, ...]:
    return tuple(Path(f"{name}.yml") for name in names)


def test_hosts_left_behind_catch_up_alone_before_all_go_on() -> None:
    run = make("preflight provision fabric serve", ("n2", 1))
    assert remaining_steps(run, VERBS) == [
        Step(paths("provision"), hosts=("n2",)),
        Step(paths("fabric", "serve")),
    ]


def test_hosts_lost_in_later_verbs_are_not_behind_in_the_first() -> None:
    run = make("preflight provision fabric serve", ("n2", 1), ("n3", 2))
    assert remaining_steps(run, VERBS)[0] == Step(paths("provision"), hosts=("n2",))


@pytest.mark.parametrize(
    "run",
    [
        # any_errors_fatal: n1 and n3 were stopped in the middle too
        make("preflight provision", ("n2", 1)),
        make("preflight provision", ("n1", 1), ("n2", 1), ("n3", 1)),
        make("preflight provision", state="interrupted"),
        make("preflight provision", ("n2", 0), state="interrupted").model_copy(update={"failures": []}),
    ],
)
def test_a_verb_that_was_stopped_for_all_is_run_again_for_all(run: Run) -> None:
    assert remaining_steps(run, VERBS) == [Step(paths("provision", "fabric", "serve"))]


def test_an_interrupt_after_a_loss_starts_at_the_verb_of_the_loss() -> None:
    run = make("preflight provision fabric", ("n2", 0), state="interrupted")
    assert remaining_steps(run, VERBS) == [Step(paths("preflight", "provision", "fabric", "serve"))]


def test_the_last_verb_leaves_nothing_after_it() -> None:
    run = make("serve serve", ("n2", 0))
    assert remaining_steps(run, VERBS) == [Step(paths("serve"), hosts=("n2",))]


def test_a_verb_that_is_gone_starts_from_the_beginning() -> None:
    run = make("renamed serve", ("n2", 0))
    assert remaining_steps(run, VERBS) == [Step(paths("preflight", "provision", "fabric", "serve"))]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "site.yml").write_text("- import_playbook: preflight.yml\n- import_playbook: serve.yml\n")
    return Project(tmp_path)


def save(project: Project, run: Run, name: str = "20260101T000000Z") -> Path:
    folder = project.runs / name
    run.save(folder)
    return folder


def test_it_follows_the_last_run_of_the_same_kind(project: Project) -> None:
    save(project, make("preflight", ("n1", 0)))
    newer = save(project, make("preflight serve", ("n1", 1)), "20260101T000001Z")
    found = plan(project, "up", "/inv", project.root / "site.yml", check=False)
    assert found.folder == newer
    assert found.steps == [Step((project.root / "serve.yml",))]


def test_nothing_to_resume_says_why(project: Project) -> None:
    def refuse(match: str) -> None:
        with pytest.raises(CannotRun, match=match):
            plan(project, "up", "/inv", project.root / "site.yml", check=False)

    refuse("no run of up on /inv is recorded")
    save(project, make("preflight").model_copy(update={"ok": True}))
    refuse("ended ok")
    folder = save(project, make("preflight", state="running"), "20260101T000001Z")
    lock = hold(folder)
    refuse("goes on")
    assert lock
