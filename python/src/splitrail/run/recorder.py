"""Write a run record while the run goes on, so that a killed run leaves all that it did."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from splitrail.proof import waived
from splitrail.run import record
from splitrail.verdict import VerdictError, load_run_verdict, write_json

Status = Literal["ok", "changed", "failed", "unreachable", "skipped"]

# Tags that select by rule, not by name: none of them can be misspelt into silence.
_SPECIAL_TAGS = frozenset({"all", "tagged", "untagged", "always", "never"})


@dataclass
class Recorder:
    """The writer of one record. ``run`` says what is started; a record already in the folder is continued."""

    folder: Path
    run: record.Run
    clock: Callable[[], float] = time.monotonic
    _timings: record.Timings = field(default_factory=record.Timings)
    _play_started: float | None = None
    _task_started: float | None = None
    _host_started: dict[tuple[str, str], float] = field(default_factory=dict)
    _dropped: dict[str, record.Failure] = field(default_factory=dict)
    _hosts: set[str] = field(default_factory=set)
    _tags_met: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = record.hold(self.folder)
        self._pid = os.getpid()
        # Line buffered: an event is in the file before the next begins, whatever kills the run.
        self._events = (self.folder / "events.jsonl").open("a", buffering=1, encoding="utf-8")
        if (self.folder / "run.json").exists():
            known = record.load(self.folder)
            self.run = known.model_copy(
                update={
                    "state": "running",
                    "ended": None,
                    "playbooks": [*known.playbooks, *self.run.playbooks],
                    "versions": known.versions | self.run.versions,
                    "revision": known.revision or self.run.revision,
                }
            )
            self._hosts.update(known.hosts)
            self._timings = record.load_timings(self.folder)
        self._carried = list(self.run.failures)
        self._took_part: list[set[str]] = [set() for _ in self.run.plays]
        self.run.save(self.folder)

    def playbook(self, name: str) -> None:
        """Another playbook of the same ansible-playbook starts."""
        self.run.playbooks.append(name)
        self.run.state, self.run.ended = "running", None
        self.run.save(self.folder)

    def given(self, names: Collection[str]) -> None:
        """The names of the extra variables that the run was started with."""
        self.run.extra_vars = sorted({*self.run.extra_vars, *names})

    def play(self, name: str, verb: str) -> None:
        self._close_times()
        self._save_timings()
        self.run.plays.append(record.Play(name=name, verb=verb))
        self._took_part.append(set())
        self._timings.plays.append(record.PlayTime(play=name, verb=verb))
        self._play_started = self.clock()
        self.run.save(self.folder)

    def task(self, name: str, role: str | None, tags: Collection[str]) -> None:
        now = self.clock()
        self._close_task(now)
        self._tags_met.update(tags)
        self._timings.tasks.append(record.TaskTime(play=self.run.plays[-1].name, role=role, task=name))
        self._task_started = now

    def host_starts(self, host: str, task_id: str) -> None:
        self._host_started[host, task_id] = self.clock()

    def result(
        self,
        *,
        host: str,
        task_id: str,
        task: str,
        role: str | None,
        status: Status,
        message: str | None = None,
        ignored: bool = False,
        run_once: bool = False,
    ) -> None:
        """One line of events.jsonl; ``message`` only for failures, ``run_once``: the task spoke for all."""
        started = self._host_started.pop((host, task_id), None)
        seconds = 0.0 if started is None else self.clock() - started
        line = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "play": self.run.plays[-1].name if self.run.plays else None,
            "role": role,
            "task": task,
            "host": host,
            "status": status,
            "seconds": round(seconds, 3),
            "changed": status == "changed",
        }
        if message is not None:
            line["message"] = message
        if ignored:
            line["ignored"] = True
        self._events.write(json.dumps(line) + "\n")
        self._hosts.add(host)
        if self._took_part:
            self._took_part[-1].add(host)
        if status in ("failed", "unreachable") and not ignored:
            # Perhaps rescued: only the play's statistics tell, at the end. Until then it counts.
            self._dropped[host] = record.Failure(
                host=host,
                status="unreachable" if status == "unreachable" else "failed",
                play=len(self.run.plays) - 1,
                role=role,
                task=task,
                message=message or "",
                run_once=run_once,
            )

    def end(self, failed: Collection[str], unreachable: Collection[str], notes: Collection[str] = ()) -> None:
        """All plays are through; the hosts given are those that Ansible counts as lost.

        ``notes``: what the plays handed out by ``set_stats`` as ``splitrail_notes``.
        """
        self.run.notes = list(dict.fromkeys([*self.run.notes, *notes]))
        lost = {*failed, *unreachable}
        own = [failure for host, failure in sorted(self._dropped.items()) if host in lost]
        for failure in own:
            failure.others_went_on = self._went_on(failure.play, lost)
        self.run.failures = [*self._carried, *own]
        self.run.ok = not self.run.failures and not lost
        wanted = set(self.run.tags) - _SPECIAL_TAGS
        self.run.unmatched_tags = sorted(wanted - self._tags_met)
        self._finish("ended")

    def _went_on(self, play: int, lost: Collection[str]) -> bool:
        """Whether the hosts that a play did not lose took part in a later one.

        Plays that start say nothing: after a fatal error Ansible starts every later play, with no host in it.
        """
        later = set().union(*self._took_part[play + 1 :])
        # The first hosts of a rolling verb are a play of their own.
        others = self._took_part[play] - {*lost} or later
        return bool(others & later)

    def interrupt(self) -> None:
        """The process ends before the plays do. Nothing happens in a forked worker, or after the end."""
        if self.run.state == "running" and os.getpid() == self._pid:
            self.run.failures = [*self._carried, *(failure for _, failure in sorted(self._dropped.items()))]
            self.run.ok = False
            self._finish("interrupted")

    def _finish(self, state: Literal["ended", "interrupted"]) -> None:
        self._close_times()
        self._save_timings()
        self.run.state = state
        self.run.ended = datetime.now(UTC)
        self.run.hosts = sorted(self._hosts)
        self.run.waivers = waived(self.folder)
        if self.run.failures:
            first = min(failure.play for failure in self.run.failures)
            self.run.failed_play = self.run.plays[first].name if 0 <= first < len(self.run.plays) else None
        try:
            verdict = load_run_verdict(self.folder)
        except VerdictError as error:
            verdict = None
            self.run.ok, self.run.error = False, str(error)
        if verdict is not None:
            verdict.save(self.folder / "verdict.json")
        # Last: a reader that sees the end finds everything else in place.
        self.run.save(self.folder)

    def _close_task(self, now: float) -> None:
        if self._task_started is not None:
            self._timings.tasks[-1].seconds = round(now - self._task_started, 3)
            self._task_started = None

    def _close_times(self) -> None:
        now = self.clock()
        self._close_task(now)
        if self._play_started is not None:
            self._timings.plays[-1].seconds = round(now - self._play_started, 3)
            self._play_started = None

    def _save_timings(self) -> None:
        seconds: dict[str, float] = {}
        for task in self._timings.tasks:
            if task.role is not None:
                seconds[task.role] = seconds.get(task.role, 0.0) + task.seconds
        self._timings.roles = [record.RoleTime(role=role, seconds=round(s, 3)) for role, s in seconds.items()]
        write_json(self.folder / "timings.json", self._timings.model_dump(mode="json"))
