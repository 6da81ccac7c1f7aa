"""drain, undrain and add: what they refuse, what they start, and what the quarantine says afterwards."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.daytwo import nodes, quarantine
from splitrail.run.execute import FAILED, OK, Report
from splitrail.run.record import Failure, Play, Run, Timings

VERBS = ("preflight", "provision", "fabric", "image", "validate", "cluster", "drain")


class Site:
    """A project of four hosts that serve nothing; what was started in it, and how that ends."""

    def __init__(self, root: Path) -> None:
        self.inventory = root / "inv"
        self.started: list[dict[str, Any]] = []
        self.code = OK
        self.inventory.mkdir()
        (root / "roles").mkdir()
        (root / "playbooks").mkdir()
        (root / "ansible.cfg").touch()
        (root / "site.yml").touch()
        for verb in VERBS:
            text = "- hosts: '{{ drain_node }}'\n" if verb == "drain" else "[]\n"
            (root / f"playbooks/{verb}.yml").write_text(text)
        hosts = "".join(f"    n{number}: {{ansible_host: 10.0.0.{number}}}\n" for number in range(1, 5))
        (self.inventory / "hosts.yml").write_text(
            f"all:\n  vars: {{cluster_name: c}}\n  hosts:\n{hosts}  children: {{head: {{hosts: {{n1: }}}}}}\n"
        )

    def execute(self, _project: object, verb: str, _playbook: str, options: Any, **more: Any) -> Report:
        steps = [([path.stem for path in step.playbooks], step.hosts) for step in more.get("steps") or ()]
        seen = quarantine.left_out(quarantine.load(self.inventory))
        self.started.append(
            {"verb": verb, "extra": options.extra_vars, "steps": steps, "left_out": list(seen)}
        )
        failure = Failure(host="n3", status="failed", play=0, role=None, task="Gate", message="not proven")
        run = Run(
            verb=verb,
            state="ended",
            started=datetime.now(UTC),
            inventory=[str(self.inventory)],
            plays=[Play(name="p", verb="cluster")],
            failures=[failure] if self.code else [],
        )
        return Report(self.code, Path("runs/r7"), run, None, Timings(), None)

    def run(self, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*words, "-i", "inv"])
        return done.exit_code, done.output

    def out(self) -> dict[str, quarantine.Entry]:
        return quarantine.load(self.inventory)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(quarantine.VARIABLE, raising=False)
    made = Site(tmp_path)
    monkeypatch.setattr(nodes, "execute", made.execute)
    return made


def test_a_drained_node_is_left_out_until_it_is_back(site: Site) -> None:
    code, said = site.run("drain", "n3", "--reason", "new fan")
    assert code == OK, said
    assert json.loads(site.started[0]["extra"][-1]) == {"drain_node": "n3"}
    assert (site.out()["n3"].reason, site.out()["n3"].by) == ("new fan", "drain")

    code, said = site.run("undrain", "n3")
    assert code == OK, said
    # While it is brought in it is seen, and still in quarantine: whatever breaks off leaves it there.
    assert site.started[1]["left_out"] == []
    assert site.started[1]["steps"] == [
        (["preflight", "provision"], ("n3",)),
        (["image", "cluster"], None),
    ]
    assert site.out() == {}
    assert site.run("undrain", "n3")[0] == 2


def test_with_proofs_after_a_reboot(site: Site) -> None:
    site.run("drain", "n3")
    assert site.run("undrain", "n3", "--prove")[0] == OK
    assert site.started[1]["steps"][1] == (["fabric", "image", "validate", "cluster"], None)


def test_a_node_that_a_gate_refuses_stays_out_with_the_evidence(site: Site) -> None:
    site.run("drain", "n3", "--reason", "new fan")
    site.code = FAILED
    assert site.run("undrain", "n3")[0] == FAILED
    entry = site.out()["n3"]
    assert entry.reason == "new fan; undrain failed in cluster"
    assert entry.evidence is not None
    assert (entry.evidence.record, entry.evidence.message) == ("r7", "not proven")


def test_a_drain_that_fails_leaves_the_node_in_service(site: Site) -> None:
    site.code = FAILED
    assert site.run("drain", "n3")[0] == FAILED
    assert site.out() == {}
    site.code = OK
    assert site.run("drain", "n3", "--check")[0] == OK
    assert site.out() == {}


def test_what_failed_while_it_worked_can_be_drained_and_keeps_its_reason(site: Site) -> None:
    quarantine.add(site.inventory, {"n3": quarantine.Entry.now("failed in fabric", "run")})
    assert site.run("drain", "n3")[0] == OK
    assert site.started[0]["left_out"] == []
    assert site.out()["n3"].reason == "failed in fabric"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["drain", "n1"], 1, "n1 is the head"),
        (["drain", "n9"], 2, "n9 is no host of"),
        (["undrain", "n2"], 2, "n2 is not out of service"),
        (["add", "n9"], 2, "does not declare n9: write it below hosts"),
    ],
)
def test_what_is_refused_starts_nothing(site: Site, words: list[str], code: int, why: str) -> None:
    done, said = site.run(*words)
    assert (done, why in said) == (code, True), said
    assert site.started == []


def test_a_node_that_is_added_is_proven(site: Site) -> None:
    assert site.run("add", "n4")[0] == OK
    assert site.started[0]["steps"] == [
        (["preflight", "provision"], ("n4",)),
        (["fabric", "image", "validate", "cluster"], None),
    ]


@pytest.fixture
def wiped(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What was shown and wiped, by the limit of the run."""
    limits: list[str | None] = []
    items = {"n3": [{"kind": "file", "name": "/etc/ray/token", "bytes": 64}]}
    monkeypatch.setattr(nodes, "look", lambda *_, **__: ("c", items))

    def wipe(_project: object, options: Any, *_: Any, **__: Any) -> Report:
        assert quarantine.left_out(site.out()) == {}
        limits.append(options.limit)
        return site.execute(None, "reset", "", options)

    monkeypatch.setattr(nodes, "wipe", wipe)
    return limits


def test_a_node_is_removed_after_its_drain_and_the_clusters_name(site: Site, wiped: list[str | None]) -> None:
    code, said = site.run("remove", "n3", "--confirm", "no")
    assert (code, wiped, site.out()["n3"].reason) == (1, [], "removed")
    assert "/etc/ray/token" in said
    code, said = site.run("remove", "n3", "--confirm", "c")
    assert (code, wiped) == (OK, ["n3"])
    assert "take n3 out of the inventory" in said


def test_a_node_that_cannot_be_drained_is_not_wiped(site: Site, wiped: list[str | None]) -> None:
    site.code = FAILED
    assert site.run("remove", "n3", "--confirm", "c")[0] == FAILED
    assert wiped == []
