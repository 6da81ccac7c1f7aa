from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from splitrail.run import record
from splitrail.run.recorder import Recorder
from splitrail.verdict import Check, Verdict, verdict_file

NOW = datetime(2026, 1, 14, 10, 15, 30, tzinfo=UTC)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def start(folder: Path, clock: Clock | None = None, **values: object) -> Recorder:
    run = record.Run.model_validate(
        {"verb": "up", "started": NOW, "inventory": ["/inv"], "playbooks": ["site.yml"], **values}
    )
    return Recorder(folder, run, clock or Clock())


def result(recorder: Recorder, host: str, status: str = "ok", message: str | None = None) -> None:
    recorder.result(
        host=host,
        task_id="t",
        task="Do it",
        role="preflight",
        status=status,  # type: ignore[arg-type]  # the cases spell it out
        message=message,
    )


def let_go(recorder: Recorder) -> None:
    """What the end of the process does."""
    os.close(recorder._lock)


def test_an_event_is_on_disk_before_the_next(tmp_path: Path) -> None:
    clock = Clock()
    recorder = start(tmp_path, clock)
    recorder.play("Preflight", "preflight")
    recorder.task("Do it", "preflight", [])
    recorder.host_starts("n1", "t")
    clock.now += 2.5
    result(recorder, "n1", "changed")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("ts")).utcoffset() is not None
    assert event == {
        "play": "Preflight",
        "role": "preflight",
        "task": "Do it",
        "host": "n1",
        "status": "changed",
        "seconds": 2.5,
        "changed": True,
    }


def test_timings_are_wall_time_not_the_sum_over_hosts(tmp_path: Path) -> None:
    clock = Clock()
    recorder = start(tmp_path, clock)
    recorder.play("Preflight", "preflight")
    for task, role, seconds in (("a", "one", 1.0), ("b", "two", 2.0), ("c", "one", 4.0), ("d", None, 8.0)):
        recorder.task(task, role, [])
        clock.now += seconds
        for host in ("n1", "n2", "n3"):
            result(recorder, host)
    recorder.play("Provision", "provision")
    clock.now += 16
    recorder.end([], [])
    times = record.load_timings(tmp_path)
    assert {time.role: time.seconds for time in times.roles} == {"one": 5.0, "two": 2.0}
    assert [(time.play, time.seconds) for time in times.plays] == [("Preflight", 15.0), ("Provision", 16.0)]
    assert [time.seconds for time in times.tasks] == [1.0, 2.0, 4.0, 8.0]


def test_the_end_says_who_was_lost_where(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.play("Preflight", "preflight")
    result(recorder, "n1", "failed", "no memory")
    result(recorder, "n2", "failed", "rescued later")
    recorder.play("Fabric", "fabric")
    result(recorder, "n3", "unreachable", "no route")
    recorder.end(failed=["n1"], unreachable=["n3"])
    run = record.load(tmp_path)
    assert (run.state, run.ok, run.failed_play, run.failed_verb) == ("ended", False, "Preflight", "preflight")
    assert [(f.host, f.status, f.play) for f in run.failures] == [
        ("n1", "failed", 0),
        ("n3", "unreachable", 1),
    ]
    assert run.hosts == ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("in_first", "in_second", "went_on"),
    [
        ("n1 n2", "n1", True),
        ("n1 n2", "", False),
        ("n1 n2", "n3", False),
        ("n2", "n1", True),
        ("n2", "", False),
    ],
)
def test_others_went_on_when_they_took_part_in_a_later_play(
    tmp_path: Path, in_first: str, in_second: str, went_on: bool
) -> None:
    recorder = start(tmp_path)
    for play, hosts in (("First", in_first), ("Second", in_second), ("Third", "")):
        recorder.play(play, play.lower())
        recorder.task("Do it", None, [])
        for host in hosts.split():
            result(recorder, host, "failed" if host == "n2" else "ok", "no")
    recorder.end(failed=["n2"], unreachable=[])
    assert [failure.others_went_on for failure in record.load(tmp_path).failures] == [went_on]


def test_a_running_record_is_held_and_a_killed_one_reads_as_interrupted(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.play("Preflight", "preflight")
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "running"
    assert record.load(tmp_path).state == "running"
    let_go(recorder)
    assert record.load(tmp_path).state == "interrupted"
    assert record.load(tmp_path).failed_verb == "preflight"


def test_an_interrupt_closes_the_record_once(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.play("Preflight", "preflight")
    result(recorder, "n1", "failed", "no memory")
    recorder.interrupt()
    run = record.load(tmp_path)
    assert (run.state, run.ok, [f.host for f in run.failures]) == ("interrupted", False, ["n1"])


def test_an_interrupt_after_the_end_changes_nothing(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.end([], [])
    recorder.interrupt()
    assert record.load(tmp_path).state == "ended"


def test_verdicts_are_merged_at_the_end(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    for host, ok in (("n1", True), ("n2", False)):
        check = Check(name="preflight.disk", host=host, subject="/", ok=ok, measured=1, required=2)
        Verdict.of([check]).save(verdict_file(tmp_path, "preflight", host))
    recorder.end(failed=["n2"], unreachable=[])
    verdict = Verdict.load(tmp_path / "verdict.json")
    assert [check.host for check in verdict.failed] == ["n2"]


def test_a_run_that_checked_nothing_has_no_verdict(tmp_path: Path) -> None:
    start(tmp_path).end([], [])
    assert not (tmp_path / "verdict.json").exists()


def test_a_broken_verdict_is_not_ok(tmp_path: Path) -> None:
    path = verdict_file(tmp_path, "preflight", "n1")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    start(tmp_path).end([], [])
    run = record.load(tmp_path)
    assert not run.ok
    assert "n1.json" in (run.error or "")


def test_a_second_process_goes_on_with_the_record(tmp_path: Path) -> None:
    first = start(tmp_path, tags=["x", "y"], limit="n1,n2")
    first.play("Preflight", "preflight")
    first.task("a", "one", ["x"])
    result(first, "n1")
    first.end([], [])
    let_go(first)
    second = start(tmp_path, playbooks=["playbooks/fabric.yml"], limit="@/gone")
    second.play("Fabric", "fabric")
    result(second, "n2", "failed", "no rail")
    second.end(failed=["n2"], unreachable=[])
    run = record.load(tmp_path)
    assert run.playbooks == ["site.yml", "playbooks/fabric.yml"]
    assert [play.verb for play in run.plays] == ["preflight", "fabric"]
    assert (run.limit, run.failed_verb, run.hosts) == ("n1,n2", "fabric", ["n1", "n2"])
    assert [time.play for time in record.load_timings(tmp_path).plays] == ["Preflight", "Fabric"]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_a_failure_of_the_first_process_is_not_forgotten_by_the_second(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.play("Preflight", "preflight")
    result(first, "n1", "failed", "no memory")
    first.end(failed=["n1"], unreachable=[])
    second = start(tmp_path)
    second.play("Fabric", "fabric")
    second.end([], [])
    run = record.load(tmp_path)
    assert not run.ok
    assert [failure.host for failure in run.failures] == ["n1"]


def test_tags_that_nothing_carries_are_named(tmp_path: Path) -> None:
    recorder = start(tmp_path, tags=["x", "typo", "all"])
    recorder.play("Preflight", "preflight")
    recorder.task("a", None, ["x", "z"])
    recorder.end([], [])
    assert record.load(tmp_path).unmatched_tags == ["typo"]


def test_everyone_may_read_a_record_and_nobody_else_write_it(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.play("Preflight", "preflight")
    recorder.end([], [])
    for name in ("run.json", "timings.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    names = [record.new_folder(tmp_path / "runs", NOW).name for _ in range(11)]
    assert names[:2] == ["20260114T101530Z", "20260114T101530Z-2"]
    for name in names:
        start(tmp_path / "runs" / name).play("Preflight", "preflight")
    assert [folder.name for folder, _ in record.newest_first(tmp_path / "runs")] == names[::-1]


def test_the_last_run_is_that_of_the_inventory_and_verb_that_did_anything(tmp_path: Path) -> None:
    for name, verb, inventory, check in (
        ("1", "up", "/a", False),
        ("2", "up", "/b", False),
        ("3", "serve", "/a", False),
        ("4", "up", "/a", True),
    ):
        recorder = start(tmp_path / name, verb=verb, inventory=[inventory], check=check)
        recorder.play("P", "preflight")
        result(recorder, "n1")
        recorder.end([], [])
    nothing = start(tmp_path / "5", inventory=["/a"])
    nothing.play("P", "preflight")
    nothing.end([], [])
    (tmp_path / "6").mkdir()
    (tmp_path / "6/run.json").write_text("{")

    def last(*args: object) -> str | None:
        found = record.last_run(tmp_path, ["/a"], *args)  # type: ignore[arg-type]  # the cases spell it out
        return found[0].name if found else None

    assert last("up", False) == "1"
    assert last("up", True) == "4"
    assert last(None, False) == "3"
    assert last("down", False) is None


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(record.RecordError, match=r"run\.json"):
        record.load(tmp_path)
    (tmp_path / "timings.json").write_text("[]")
    with pytest.raises(record.RecordError, match=r"timings\.json"):
        record.load_timings(tmp_path)


def test_five_hundred_hosts_are_cheap(tmp_path: Path) -> None:
    recorder = start(tmp_path)
    recorder.play("P", "preflight")
    before = (tmp_path / "run.json").stat().st_mtime_ns
    for number in range(500):
        result(recorder, f"n{number}", "failed", "no memory")
    # A result appends a line and rewrites nothing.
    assert (tmp_path / "run.json").stat().st_mtime_ns == before
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 500
