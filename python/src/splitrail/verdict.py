"""The one contract of everything that passes or fails: checks, and the verdict that they add up to."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from rich.console import Console
from rich.table import Table
from rich.text import Text


class VerdictError(Exception):
    """A verdict could not be read, or holds no check."""


class Check(BaseModel):
    """One finding: what was looked at on which host, what was found and what is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    host: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    # Strict: a module that returns the string "false" must not pass for a bool.
    ok: bool = Field(strict=True)
    measured: JsonValue
    required: JsonValue
    unit: str = ""
    hint: str = ""

    def __str__(self) -> str:
        line = (
            f"{self.name} ({self.subject}): measured {_figure(self.measured, self.unit)}, "
            f"required {_figure(self.required, self.unit)}"
        )
        return f"{line}. {self.hint}" if self.hint and not self.ok else line


class Verdict(BaseModel):
    """Checks and whether all of them passed; ``seconds`` is the wall time that they took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: bool = Field(strict=True)
    checks: tuple[Check, ...] = Field(min_length=1)
    seconds: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.ok != all(check.ok for check in self.checks):
            raise ValueError("ok must be true exactly when every check is ok")
        return self

    @classmethod
    def of(cls, checks: Iterable[Check], seconds: float = 0.0) -> Self:
        """The verdict of these checks; raises VerdictError when there are none: nothing was checked."""
        found = tuple(checks)
        if not found:
            raise VerdictError("nothing was checked")
        return cls(ok=all(check.ok for check in found), checks=found, seconds=seconds)

    @classmethod
    def merge(cls, verdicts: Iterable[Verdict]) -> Self:
        """One verdict of many; hosts work side by side, so the longest of their times counts."""
        known = list(verdicts)
        return cls.of(
            (check for verdict in known for check in verdict.checks),
            max((verdict.seconds for verdict in known), default=0.0),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a verdict; raises VerdictError naming the file and what is wrong with it."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise VerdictError(f"{path}: not a readable verdict: {error}") from error

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old verdict or the new one, never half of one."""
        write_json(path, self.model_dump(mode="json"))

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)

    def updated(self, newer: Verdict) -> Verdict:
        """This verdict with the checks of ``newer`` in place of those of the same name, host and subject."""
        checks = {(c.name, c.host, c.subject): c for c in (*self.checks, *newer.checks)}
        return Verdict.of(checks.values(), self.seconds + newer.seconds)


def write_json(path: Path, document: object, mode: int = 0o644) -> None:
    """Write JSON atomically with the given mode, making the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
            stream.write("\n")
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def verdict_file(run_dir: Path, verb: str, host: str) -> Path:
    """Where the verdict of a verb on a host lies in a run record.

    Raises ValueError for a name that is no plain file name, so that none can point outside the record.
    """
    for part in (verb, host):
        if not part or part in {".", ".."} or "/" in part or "\0" in part:
            raise ValueError(f"{part!r} cannot name a verdict: it must be a plain file name")
    return run_dir / "verdicts" / verb / f"{host}.json"


def load_run_verdict(run_dir: Path) -> Verdict | None:
    """All verdicts of a run merged, or None when the run checked nothing; raises VerdictError."""
    files = sorted((run_dir / "verdicts").glob("*/*.json"))
    return Verdict.merge(Verdict.load(file) for file in files) if files else None


def show(verdict: Verdict, console: Console) -> None:
    """Every failed check with its cure, then the passed ones counted by name: a table, or plain lines."""
    if console.is_terminal:
        console.print(_table(verdict))
    else:
        for line in plain_lines(verdict):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain_lines(verdict: Verdict) -> Iterator[str]:
    """The verdict for a log: a line a failed check, a line a name of passed ones, a line of sums."""
    for check in verdict.failed:
        yield f"FAIL {check.host}: {check}"
    for name, count in _passed(verdict):
        yield f"ok   {name}: {count} passed"
    yield _sum(verdict)


def _table(verdict: Verdict) -> Table:
    table = Table(title=_sum(verdict), title_justify="left")
    for heading in ("", "check", "host", "subject", "measured", "required", "cure"):
        table.add_column(heading, overflow="fold")
    for check in verdict.failed:
        # Text, not str: a measured value may hold square brackets, which are markup to rich.
        table.add_row(
            Text("FAIL", style="bold red"),
            *(Text(cell) for cell in (check.name, check.host, check.subject)),
            Text(_figure(check.measured, check.unit), style="red"),
            Text(_figure(check.required, check.unit)),
            Text(check.hint),
        )
    for name, count in _passed(verdict):
        table.add_row(Text("ok", style="green"), Text(name), Text(f"{count} passed"))
    return table


def _sum(verdict: Verdict) -> str:
    if verdict.ok:
        return f"{len(verdict.checks)} of {len(verdict.checks)} checks passed"
    return f"{len(verdict.failed)} of {len(verdict.checks)} checks failed"


def _passed(verdict: Verdict) -> list[tuple[str, int]]:
    return sorted(Counter(check.name for check in verdict.checks if check.ok).items())


def _figure(value: JsonValue, unit: str) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value)
    # A unit belongs to a number; after "could not be checked: ..." it would read as part of the reason.
    return f"{text} {unit}" if unit and isinstance(value, (int, float)) else text
