"""Show a run while it goes on: a live view on a terminal, else a line a task; failures at once in both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from splitrail.run.messages import cure, failure_message, scrub
from splitrail.run.playbook import Event

_TASK_STARTS = frozenset({"playbook_on_task_start", "playbook_on_handler_task_start"})
_FAILURES = frozenset({"runner_on_failed", "runner_on_unreachable"})


@dataclass
class Progress:
    """What is known of the run, from its events."""

    total: int | None  # plays, when the playbooks tell
    clock: Callable[[], float] = time.monotonic
    plays: int = 0
    play: str = ""
    role: str = ""
    task: str = ""
    ok: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def apply(self, event: Event) -> None:
        kind, data = event.get("event"), event.get("event_data") or {}
        host = data.get("host", "")
        if kind == "playbook_on_play_start":
            self.plays += 1
            self.play, self.role, self.task = data.get("play") or "", "", ""
        elif kind in _TASK_STARTS:
            self.role, self.task = data.get("role") or "", data.get("task") or ""
        elif kind in ("runner_on_ok", "runner_on_skipped"):
            # A host that goes on after a failure was rescued.
            self.failed.discard(host)
            self.ok.add(host)
            if kind == "runner_on_ok" and (data.get("res") or {}).get("changed"):
                self.changed.add(host)
        elif kind in _FAILURES and not data.get("ignore_errors"):
            self.ok.discard(host)
            self.failed.add(host)

    @property
    def elapsed(self) -> str:
        minutes, seconds = divmod(int(self.clock() - self.started), 60)
        return f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}"

    @property
    def where(self) -> str:
        count = f"{self.plays}/{self.total}" if self.total and self.plays <= self.total else f"{self.plays}"
        step = f"{self.role} : {self.task}" if self.role else self.task
        return f"play {count} {self.play}" + (f" | {step}" if step else "")

    @property
    def hosts(self) -> str:
        return f"hosts ok {len(self.ok)}, changed {len(self.changed)}, failed {len(self.failed)}"


class Reporter:
    """Prints progress to a console; use it as a context manager and hand it every event."""

    def __init__(self, console: Console, total: int | None, *, verbose: bool = False) -> None:
        self.progress = Progress(total)
        self._console = console
        self._verbose = verbose
        # With -v Ansible's own output scrolls by; a live view under it would only flicker.
        live = console.is_terminal and not verbose
        self._spinner = Spinner("dots")
        self._live = Live(self, console=console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Seen by Live at each refresh: the lines are made anew, cut to the width.
        self._spinner.update(text=_one_line(self.progress.where))
        yield self._spinner
        yield _one_line(f"  {self.progress.hosts}, elapsed {self.progress.elapsed}")

    def event(self, event: Event) -> None:
        """Take one event of the run."""
        self.progress.apply(event)
        kind, data = event.get("event"), event.get("event_data") or {}
        if self._verbose:
            # Ansible's output repeats all that follows.
            if text := scrub(str(event.get("stdout") or "")):
                self.say(text)
        elif kind in _FAILURES:
            self._failure(data.get("host", "?"), data, unreachable=kind == "runner_on_unreachable")
        elif kind in _TASK_STARTS and self._live is None:
            self.say(f"[{self.progress.elapsed}] {self.progress.where}")

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the live view, or just print it; never parsed as markup."""
        self._console.print(Text(text, style=style or ""), soft_wrap=True)

    def _failure(self, host: str, data: Event, *, unreachable: bool) -> None:
        message = failure_message(data.get("res") or {})
        word = "UNREACHABLE" if unreachable else "FAILED"
        if data.get("ignore_errors"):
            word = "failed, ignored"
        self.say(
            f"[{self.progress.elapsed}] {word} {host} | {self.progress.where}\n{_indent(message)}",
            style=None if data.get("ignore_errors") else "red",
        )
        if hint := cure(message):
            self.say(_indent(hint))


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
