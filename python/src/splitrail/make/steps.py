"""Run commands as named steps, each with a log and a time, and stop them cleanly when asked to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

# How far what is shown may lag behind what a step writes.
_SHOW_SECONDS = 0.2
# The first interrupt lets a step clean up after itself, the second asks again, the third leaves no choice.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# Ansible's failed task, a failed assertion of pytest's and pytest's summary. Tests of sad paths fail on
# purpose before that, so the last ones count; Molecule breaks lines at the terminal's width.
_COMPLAINT = re.compile(r"^(fatal: |failed: |\[ERROR\]|E   |FAILED |ERROR |CRITICAL )")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COMPLAINT_LINES = 16
_COMPLAINT_FOLLOWERS = 3


@dataclass(frozen=True)
class Step:
    """A command; ``folder`` is where it runs, ``env`` is added to this process's environment."""

    name: str
    argv: Sequence[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a step ended; ``code`` is its exit code, negative when a signal ended it.

    ``excused``: it failed, and passed when it was run again. It counts as passed and is told apart.
    """

    name: str
    code: int
    seconds: float
    log: Path
    excused: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0


class Steps:
    """Runs steps and keeps how they ended. Their output goes to ``logs``, a file a step."""

    def __init__(self, logs: Path, console: Console) -> None:
        self.results: list[Result] = []
        self.interrupts = 0
        self._logs = logs
        self._console = console
        self._children: set[subprocess.Popen[bytes]] = set()
        self._changing = threading.RLock()  # re-entered when a signal comes in the middle

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it, Ctrl-C and SIGTERM stop the steps and not this process; ``interrupts`` counts them."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, step: Step, *, show: bool) -> Result:
        """Run a step to its end; with ``show``, its output appears here too, while it runs."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{step.name}.log"
        began = time.monotonic()
        # A file, not a pipe: a service that a step leaves behind would hold the pipe open for ever.
        with log.open("wb") as sink, log.open("rb") as source:
            code = self._wait(self._start(step, sink.fileno()), source if show else None)
        result = Result(step.name, code, time.monotonic() - began, log)
        self.results.append(result)
        return result

    def run_again(self, step: Step, failed: Result, *, show: bool) -> Result:
        """Run a step that failed once more, with a log of its own; if it passes, ``failed`` is excused."""
        result = self.run(replace(step, name=f"{step.name}-again"), show=show)
        if result.ok:
            self.results[self.results.index(failed)] = replace(failed, excused=True)
        return result

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def summarize(self) -> bool:
        """Print how each step ended, its time and where its log is, and a last line with counts.

        Returns whether all were ok, or excused.
        """
        self.say("")
        for result in self.results:
            where = "" if result.ok else f"  {result.log}"
            word, style = ("ok    ", "green") if result.ok else ("FAILED", "red")
            if result.excused:
                word, style = "FLAKY ", "yellow"
            self.say(f"{word} {clock(result.seconds):>8}  {result.name}{where}", style)
            # Again here, in few lines: of a long output some keep only the last screen.
            for line in () if result.ok else complaints(result.log):
                self.say(f"         {line}")
        failed = sum(not result.ok and not result.excused for result in self.results)
        self.say(f"{len(self.results) - failed} passed, {failed} failed")
        return failed == 0

    def _start(self, step: Step, sink: int) -> subprocess.Popen[bytes]:
        with self._changing:
            child = subprocess.Popen(
                step.argv,
                cwd=step.folder,
                env={**environment(), **step.env},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # A group of its own, so that an interrupt reaches all that the step started, and once.
                start_new_session=True,
            )
            self._children.add(child)
        if self.interrupts:  # it came while the step was started
            self._signal(child)
        return child

    def _wait(self, child: subprocess.Popen[bytes], shown: BinaryIO | None) -> int:
        code: int | None = None
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(_SHOW_SECONDS)
            if shown:
                sys.stdout.buffer.write(shown.read())
                sys.stdout.flush()
        with self._changing:
            self._children.discard(child)
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1
        # Not through the console, which this may have interrupted.
        os.write(2, b"\nstopping what runs; interrupt again to end it at once\n")
        with self._changing:
            for child in self._children:
                self._signal(child)

    def _signal(self, child: subprocess.Popen[bytes]) -> None:
        try:
            os.killpg(child.pid, _SIGNALS[min(self.interrupts, len(_SIGNALS)) - 1])
        except ProcessLookupError:
            return  # it has ended


def environment() -> dict[str, str]:
    """This process's environment, with the tools beside this Python found first and output unbuffered."""
    beside = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


def clock(seconds: float) -> str:
    """A time span for people: `0.4 s`, `43 s`, `2:07 min`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02} min"  # noqa: PLR2004


def complaints(log: Path) -> list[str]:
    """What a log of Ansible's or pytest's names as failed last: such lines and those after them."""
    found: deque[str] = deque(maxlen=_COMPLAINT_LINES)
    follow = 0
    with log.open(errors="replace") as source:
        for line in source:
            plain = _COLOUR.sub("", line).strip(" │\n")
            follow = _COMPLAINT_FOLLOWERS if _COMPLAINT.search(plain) else follow - 1
            if follow >= 0:
                found.append(plain)
    return list(found)


def show_log(log: Path, lines: int | None = None) -> None:
    """Print a step's whole output, or its last ``lines``."""
    with log.open("rb") as source:
        if lines is None:
            shutil.copyfileobj(source, sys.stdout.buffer)
        else:
            sys.stdout.buffer.writelines(deque(source, maxlen=lines))
    sys.stdout.flush()
