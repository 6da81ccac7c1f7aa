"""What run records tell when they are looked at again: a line a run, one run in full, two runs side by side.

Records hold no value of a variable, so nothing here can show one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitrail.run.record import RecordError, Run, Timings, load, load_timings, newest_first
from splitrail.verdict import Check, Verdict, VerdictError, load_run_verdict


@dataclass
class Task:
    """A task of a run: the hosts that it changed and those that it failed on."""

    play: str
    role: str | None
    task: str
    changed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.role} : {self.task}" if self.role else self.task


@dataclass
class History:
    """A run record, read as a whole. ``statuses``: by host, how often a task ended in which way."""

    folder: Path
    run: Run
    timings: Timings
    verdict: Verdict | None
    tasks: list[Task]
    statuses: dict[str, Counter[str]]
    notes: list[str]  # parts of the record that could not be read

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        if self.run.state != "ended":
            return self.run.state
        return "ok" if self.run.ok else "failed"

    @property
    def seconds(self) -> float | None:
        """Wall time; None while it goes on, or where a killed run left no end."""
        ended = self.run.ended
        return (ended - self.run.started).total_seconds() if ended else None

    @property
    def changed(self) -> list[str]:
        """The hosts that some task changed."""
        return sorted({host for task in self.tasks for host in task.changed})

    def slowest(self, count: int) -> list[tuple[float, str, str]]:
        """The slowest tasks: seconds, play, task."""
        tasks = sorted(self.timings.tasks, key=lambda task: task.seconds, reverse=True)
        return [
            (task.seconds, task.play, f"{task.role} : {task.task}" if task.role else task.task)
            for task in tasks[:count]
        ]

    def checks(self) -> dict[tuple[str, str, str], Check]:
        """The verdict's checks by name, host and subject."""
        checks = self.verdict.checks if self.verdict else ()
        return {(check.name, check.host, check.subject): check for check in checks}

    def line(self) -> dict[str, Any]:
        """What a list shows of it."""
        checks = self.checks().values()
        return {
            "run": self.name,
            "verb": self.run.verb,
            "check_mode": self.run.check,
            "outcome": self.outcome,
            "started": self.run.started.isoformat(),
            "seconds": self.seconds,
            "inventory": self.run.inventory,
            "hosts": len(self.run.hosts),
            "changed": len(self.changed),
            "checks": len(checks),
            "checks_failed": sum(not check.ok for check in checks),
            "error": self.run.error,
        }

    def document(self, slowest: int = 10) -> dict[str, Any]:
        """All of it, as data."""
        return {
            **self.line(),
            "folder": str(self.folder),
            "limit": self.run.limit,
            "tags": self.run.tags,
            "extra_vars": self.run.extra_vars,
            "resumes": self.run.resumes,
            "revision": self.run.revision,
            "versions": self.run.versions,
            "waivers": self.run.waivers,
            "plays": [play.model_dump() for play in self.timings.plays],
            "roles": [role.model_dump() for role in self.timings.roles],
            "slowest": [
                {"seconds": s, "play": play, "task": task} for s, play, task in self.slowest(slowest)
            ],
            "by_host": {host: dict(sorted(counts.items())) for host, counts in sorted(self.statuses.items())},
            "changes": [
                {"play": task.play, "task": task.name, "hosts": sorted(task.changed)}
                for task in self.tasks
                if task.changed
            ],
            "failures": [failure.model_dump() for failure in self.run.failures],
            "failed_checks": [
                check.model_dump(mode="json") for check in self.checks().values() if not check.ok
            ],
            "notes": self.notes,
        }


def read(folder: Path) -> History:
    """Read a record; what is broken in it beside run.json is told in ``notes``. Raises RecordError."""
    run = load(folder)
    notes: list[str] = []
    timings, verdict = Timings(), None
    try:
        timings = load_timings(folder)
        verdict = load_run_verdict(folder)
    except (RecordError, VerdictError) as error:
        notes.append(str(error))
    tasks: dict[tuple[str, str | None, str], Task] = {}
    statuses: dict[str, Counter[str]] = {}
    broken = 0
    for event in _events(folder / "events.jsonl"):
        if event is None:
            broken += 1
            continue
        key = (event["play"] or "", event["role"], event["task"])
        task = tasks.setdefault(key, Task(*key))
        statuses.setdefault(event["host"], Counter())[event["status"]] += 1
        if event["changed"]:
            task.changed.add(event["host"])
        if event["status"] in ("failed", "unreachable") and not event.get("ignored"):
            task.failed.add(event["host"])
    if broken:
        # A run that was killed leaves half a line at most; a full disk may leave more.
        notes.append(f"{folder / 'events.jsonl'}: {broken} lines cannot be read")
    return History(folder, run, timings, verdict, list(tasks.values()), statuses, notes)


def _events(file: Path) -> Iterator[dict[str, Any] | None]:
    try:
        stream = file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with stream:
        for text in stream:
            try:
                event = json.loads(text)
            except json.JSONDecodeError:
                event = None
            known = isinstance(event, dict) and {"play", "role", "task", "host", "status", "changed"} <= set(
                event
            )
            yield event if known else None


def find(runs: Path, name: str) -> Path:
    """The folder of a run: its name or a beginning of it that no other has, a path, `last`, or `last~N` for
    the one N runs before. Raises RecordError naming what there is."""
    if Path(name).name != name:
        if (Path(name) / "run.json").is_file():
            return Path(name)
        raise RecordError(f"{name}: no run record: name a folder that holds run.json")
    folders = [folder for folder, _ in newest_first(runs)]
    word, _, back = name.partition("~")
    if word == "last" and (back or "0").isdigit():
        if int(back or 0) < len(folders):
            return folders[int(back or 0)]
        raise RecordError(f"{name}: {runs} holds {len(folders)} runs")
    exact = [folder for folder in folders if folder.name == name]
    found = exact or [folder for folder in folders if folder.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecordError(f"{name}: several runs begin so: {', '.join(sorted(one.name for one in found))}")
    newest = ", ".join(folder.name for folder in folders[:3]) or "none"
    raise RecordError(f"{name}: no such run in {runs}; the newest: {newest} (`splitrail runs list`)")


@dataclass
class Difference:
    """What the second run did otherwise than the first."""

    old: History
    new: History

    def settings(self) -> dict[str, tuple[Any, Any]]:
        """How the runs were started, where it differs: names of extra variables, never values."""
        one, other = self.old.run, self.new.run
        keys = ("verb", "inventory", "limit", "tags", "skip_tags", "check", "extra_vars", "revision")
        found = {key: (getattr(one, key), getattr(other, key)) for key in keys}
        programs = sorted(set(one.versions) | set(other.versions))
        found |= {name: (one.versions.get(name), other.versions.get(name)) for name in programs}
        found |= {"hosts": (one.hosts, other.hosts), "waivers": (one.waivers, other.waivers)}
        return {key: values for key, values in found.items() if values[0] != values[1]}

    def times(self) -> list[tuple[str, float | None, float | None]]:
        """Seconds of each role and play of either run; None where it did not run. Equal names are summed."""
        found: dict[str, list[float | None]] = {}
        for side, history in enumerate((self.old, self.new)):
            timings = history.timings
            rows = [(f"play {play.play}", play.seconds) for play in timings.plays]
            rows += [(f"role {role.role}", role.seconds) for role in timings.roles]
            for name, seconds in rows:
                pair = found.setdefault(name, [None, None])
                pair[side] = (pair[side] or 0.0) + seconds
        return [(name, one, other) for name, (one, other) in found.items()]

    def changes(self) -> list[tuple[str, list[str], list[str]]]:
        """Tasks that changed other hosts: task, hosts of the first run, of the second."""
        one, other = ({task.name: task.changed for task in side.tasks} for side in (self.old, self.new))
        names = dict.fromkeys([*one, *other])
        pairs = [(name, one.get(name, set()), other.get(name, set())) for name in names]
        return [(name, sorted(a), sorted(b)) for name, a, b in pairs if a != b]

    def flipped(self) -> list[tuple[str, Check | None, Check | None]]:
        """Checks that passed in one run and failed in the other, or failed in the only one that made them."""
        one, other = self.old.checks(), self.new.checks()
        found = []
        for key in dict.fromkeys([*one, *other]):
            a, b = one.get(key), other.get(key)
            if a and b and a.ok == b.ok:
                continue
            if (a and b) or not (a or b).ok:  # type: ignore[union-attr]  # a key is one's or the other's
                found.append((f"{key[0]} {key[1]} ({key[2]})", a, b))
        return found

    def document(self) -> dict[str, Any]:
        """All of it, as data."""
        return {
            "runs": [self.old.line(), self.new.line()],
            "settings": {key: list(values) for key, values in self.settings().items()},
            "times": [{"what": name, "seconds": [one, other]} for name, one, other in self.times()],
            "changes": [{"task": name, "hosts": [one, other]} for name, one, other in self.changes()],
            "flipped": [
                {"check": name, "checks": [c.model_dump(mode="json") if c else None for c in pair]}
                for name, *pair in self.flipped()
            ],
        }
