"""What a run record holds, and reading it back.

A record is a folder: ``run.json`` (what ran, when, how it ended), ``events.jsonl`` (a line a task and host),
``timings.json`` (seconds per play, role and task), ``verdicts/<verb>/<host>.json`` and, once the run is over,
``verdict.json``. Whoever writes to it holds a shared lock on the folder, so that a reader can tell a run that
goes on from one that was killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from splitrail.verdict import write_json


class RecordError(Exception):
    """A run record could not be read or made."""


class Play(BaseModel):
    """A play that started, and the verb (the playbook's name) that it belongs to."""

    name: str
    verb: str


class Failure(BaseModel):
    """Where a host dropped out of the run."""

    host: str
    status: Literal["failed", "unreachable"]
    play: int  # position in Run.plays
    role: str | None
    task: str
    message: str
    run_once: bool = False  # the task spoke for all hosts, so the fault need not be this one's
    others_went_on: bool = False  # hosts that were in that play with this one took part in later plays
    quarantined: bool = False  # the host was taken out of service, and the run went on without it
    proven_again: bool = False  # the gate refused the proof, and the run went back to make a new one


class PlayTime(BaseModel):
    play: str
    verb: str
    seconds: float = 0.0


class RoleTime(BaseModel):
    role: str
    seconds: float = 0.0


class TaskTime(BaseModel):
    play: str
    role: str | None
    task: str
    seconds: float = 0.0


class Timings(BaseModel):
    """``timings.json``: wall seconds, from the start of a play or task to the start of the next, not the sum
    over hosts; a role's are those of its tasks."""

    plays: list[PlayTime] = Field(default_factory=list)
    roles: list[RoleTime] = Field(default_factory=list)
    tasks: list[TaskTime] = Field(default_factory=list)


class Run(BaseModel):
    """``run.json``."""

    model_config = ConfigDict(extra="forbid")

    verb: str
    state: Literal["running", "ended", "interrupted"] = "running"
    ok: bool = False
    started: AwareDatetime
    ended: AwareDatetime | None = None
    playbooks: list[str] = Field(default_factory=list)
    inventory: list[str]
    limit: str | None = None
    tags: list[str] = Field(default_factory=list)
    skip_tags: list[str] = Field(default_factory=list)
    extra_vars: list[str] = Field(default_factory=list)  # names only: a value may be secret
    check: bool = False
    plays: list[Play] = Field(default_factory=list)
    hosts: list[str] = Field(default_factory=list)  # those that answered or were tried
    failures: list[Failure] = Field(default_factory=list)
    failed_play: str | None = None
    unmatched_tags: list[str] = Field(default_factory=list)  # asked for, but no task that ran carries them
    error: str | None = None  # why nothing, or not all, could be run; failed tasks are in failures
    waivers: list[str] = Field(default_factory=list)  # what was started without a proof, and why
    notes: list[str] = Field(default_factory=list)  # what whoever relies on this run must know, in words
    quarantined: list[str] = Field(default_factory=list)  # hosts that this run put out of service
    resumes: str | None = None  # name of the record whose run this one goes on with
    versions: dict[str, str] = Field(default_factory=dict)
    revision: str | None = None  # of the project's git tree, with -dirty when it had changes

    @property
    def open_failures(self) -> list[Failure]:
        """The failures that the run has not gone on without."""
        return [one for one in self.failures if not (one.quarantined or one.proven_again)]

    @property
    def failed_verb(self) -> str | None:
        """The verb to go on from: that of the first play in which a host dropped out, or of the last play."""
        if not self.plays:
            return None
        if self.open_failures:
            return self.plays[min(failure.play for failure in self.open_failures)].verb
        return self.plays[-1].verb

    @property
    def through(self) -> bool:
        """Whether all hosts but those that it put out of service are through with all of it."""
        return self.state == "ended" and not self.open_failures and self.error is None

    @property
    def resumable(self) -> bool:
        """Whether anything was done. A run that ended before its first task is run again, not resumed."""
        return bool(self.plays) and (bool(self.hosts) or self.state != "ended")

    def save(self, folder: Path) -> None:
        write_json(folder / "run.json", self.model_dump(mode="json"))


def new_folder(runs: Path, now: datetime) -> Path:
    """Make and return ``runs/<UTC time>``, with a counter when two runs start in one second."""
    runs.mkdir(parents=True, exist_ok=True)
    stem = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    counter = 1
    while True:
        folder = runs / (stem if counter == 1 else f"{stem}-{counter}")
        try:
            folder.mkdir()
        except FileExistsError:
            counter += 1
        else:
            return folder


def hold(folder: Path) -> int:
    """Take the writer's lock; it lasts until the returned descriptor is closed or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether a writer of this record is alive."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def load(folder: Path) -> Run:
    """Read ``run.json``; raises RecordError naming the file.

    A run that says it is running but has no writer was killed, so it reads as interrupted.
    """
    file = folder / "run.json"
    try:
        run = Run.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise RecordError(f"{file}: not a readable run record: {error}") from error
    if run.state == "running" and not is_held(folder):
        run.state = "interrupted"
    return run


def load_timings(folder: Path) -> Timings:
    """Read ``timings.json``; empty when no play started. Raises RecordError naming the file."""
    file = folder / "timings.json"
    try:
        return Timings.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Timings()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise RecordError(f"{file}: not readable timings: {error}") from error


def newest_first(runs: Path) -> Iterator[tuple[Path, Run]]:
    """Every readable record of a runs folder; one broken record must not hide the others."""
    folders = [file.parent for file in runs.glob("*/run.json")]
    for folder in sorted(folders, key=_age, reverse=True):
        try:
            yield folder, load(folder)
        except RecordError:
            continue


def last_run(
    runs: Path, inventory: Sequence[str], verb: str | None = None, check: bool | None = None
) -> tuple[Path, Run] | None:
    """The newest record of that inventory (and verb, and check mode, when given) that did anything."""
    for folder, run in newest_first(runs):
        if (
            run.resumable
            and run.inventory == list(inventory)
            and verb in (None, run.verb)
            and check in (None, run.check)
        ):
            return folder, run
    return None


def _age(folder: Path) -> tuple[str, int]:
    # Of two runs of one second, "…Z-10" is newer than "…Z-9".
    stem, _, counter = folder.name.partition("Z-")
    return stem.removesuffix("Z"), int(counter) if counter.isdigit() else 1
