"""An upgrade: prepared beside, switched at once, taken back where it fails."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.daytwo import upgrade
from splitrail.run.execute import FAILED, INTERRUPTED, OK, Report
from splitrail.run.record import Failure, Play, Run, Timings

ROOT = Path(__file__).parents[3]


class Site:
    """The lab's inventory with a second release; what was started, and the verbs that fail."""

    def __init__(self, root: Path) -> None:
        self.started: list[tuple[str, str, list[list[str]]]] = []
        self.fails: dict[str, str] = {}
        self.code = FAILED
        self.held: list[int] = []
        for part in ("inventories", "playbooks", "roles", "templates"):
            shutil.copytree(ROOT / part, root / part)
        for part in ("ansible.cfg", "site.yml"):
            shutil.copy(ROOT / part, root / part)
        release = yaml.safe_load((root / "inventories/releases/cpu.yml").read_text())
        release["name"] = "cpu-next"
        (root / "inventories/releases/cpu-next.yml").write_text(yaml.safe_dump(release))

    def execute(self, _project: object, verb: str, _playbook: str, options: Any, **more: Any) -> Report:
        release = json.loads(options.extra_vars[-1])["release"]["name"]
        parts = [[path.stem for path in step.playbooks] for step in more["steps"]]
        self.started.append((verb, release, parts))
        self.held.append(json.loads(options.extra_vars[-2])["down_hold_s"])
        failed = self.fails.get(verb)
        failures = [Failure(host="lab-head", status="failed", play=0, role=None, task="t", message="no")]
        run = Run(
            verb=verb,
            state="ended",
            started=datetime.now(UTC),
            inventory=["i"],
            plays=[Play(name="p", verb=failed or "smoke")],
            failures=failures if failed else [],
        )
        return Report(self.code if failed else OK, Path("runs/r7"), run, None, Timings(), None)

    def run(self, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["upgrade", "-i", "inventories/lab", *words])
        return done.exit_code, done.output


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    made = Site(tmp_path)
    monkeypatch.setattr(upgrade, "execute", made.execute)
    return made


FORWARD = [["image", "validate"], ["down", "cluster", "serve", "smoke"]]


def test_it_is_prepared_beside_and_then_switched(site: Site) -> None:
    code, said = site.run("--to", "cpu-next")
    assert (code, site.started) == (OK, [("upgrade", "cpu-next", FORWARD)]), said
    assert said.index("wait at the entrance, each for 600 s at most") < said.index(
        "cpu-next serves. Write it into"
    )
    assert site.held == [600]


def test_requests_may_fail_at_once_instead(site: Site) -> None:
    assert "new ones fail until it serves" in site.run("--to", "cpu-next", "--hold", "0")[1]
    assert site.held == [0]


def test_what_served_comes_back_where_the_other_does_not_serve(site: Site) -> None:
    site.fails = {"upgrade": "serve"}
    code, said = site.run("--to", "cpu-next")
    assert code == FAILED
    assert site.started[1] == ("upgrade-back", "cpu", [["validate", "cluster", "serve", "smoke"]])
    assert "back to cpu" in said


def test_what_serves_stays_where_the_other_is_not_proven(site: Site) -> None:
    site.fails = {"upgrade": "validate"}
    assert site.run("--to", "cpu-next")[0] == FAILED
    assert site.started[1] == ("upgrade-back", "cpu", [["validate"]])


def test_an_interrupted_one_goes_neither_way_by_itself(site: Site) -> None:
    site.fails, site.code = {"upgrade": "serve"}, INTERRUPTED
    code, said = site.run("--to", "cpu-next")
    assert (code, len(site.started)) == (INTERRUPTED, 1)
    assert "or back: splitrail upgrade --to cpu" in said


@pytest.mark.parametrize(
    ("to", "code", "why"),
    [
        ("no-such", 2, "no release no-such; there are: cpu, cpu-next"),
        ("mi325x-rocm7.0", 1, "is for mi325x, and the cluster for cpu"),
    ],
)
def test_a_release_that_cannot_be_is_refused_first(site: Site, to: str, code: int, why: str) -> None:
    done, said = site.run("--to", to)
    assert (done, site.started) == (code, [])
    assert why in said.replace("\n", " ")
