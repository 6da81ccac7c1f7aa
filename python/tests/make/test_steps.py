"""Steps: their logs, their ends, and how an interrupt reaches them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from splitrail.make.steps import Step, Steps, clock, complaints


@pytest.fixture
def said() -> StringIO:
    return StringIO()


@pytest.fixture
def steps(tmp_path: Path, said: StringIO) -> Steps:
    return Steps(tmp_path / "logs", Console(file=said, highlight=False))


def shell(tmp_path: Path, name: str, script: str) -> Step:
    return Step(name, ["sh", "-c", script], tmp_path)


def once(path: Path, action: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a file is there."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_both_streams_reach_the_log(steps: Steps, tmp_path: Path) -> None:
    result = steps.run(shell(tmp_path, "talk", "echo out; echo err >&2; exit 3"), show=False)
    assert (result.ok, result.code) == (False, 3)
    assert result.log.read_text() == "out\nerr\n"


def test_output_is_shown_when_asked_for(
    steps: Steps, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps.run(shell(tmp_path, "quiet", "echo unseen"), show=False)
    steps.run(shell(tmp_path, "loud", "echo seen; exit 1"), show=True)
    assert capfd.readouterr().out == "seen\n"


def test_a_process_left_behind_does_not_hold_a_step_up(steps: Steps, tmp_path: Path) -> None:
    result = steps.run(shell(tmp_path, "leaves", "sleep 30 & echo $!"), show=True)
    os.kill(int(result.log.read_text()), signal.SIGKILL)
    assert result.seconds < 15


def test_a_step_reads_no_input(steps: Steps, tmp_path: Path) -> None:
    assert steps.run(shell(tmp_path, "asks", "read answer"), show=False).code == 1


def test_a_failed_log_is_told_in_few_lines(steps: Steps, said: StringIO, tmp_path: Path) -> None:
    boxed = "  \x1b[2m│\x1b[0m \x1b[0;31mfatal: [node]: FAILED! => 3 of 5 checks failed\x1b[0m"
    log = "\n".join(["seen before", boxed, "  │ roce_nic.mtu (rail0): measured 1500"])
    steps.run(shell(tmp_path, "bad", f"cat <<'END'\n{log}\nEND\nexit 2"), show=False)
    steps.summarize()
    told = said.getvalue()
    assert "fatal: [node]: FAILED! => 3 of 5 checks failed" in told
    assert "roce_nic.mtu (rail0): measured 1500" in told
    assert "seen before" not in told


def test_only_the_last_complaints_are_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"fatal: {number}\n" for number in range(100)))
    told = complaints(log)
    assert told[-1] == "fatal: 99"
    assert len(told) < 20


def test_the_summary_counts_and_names_the_log(steps: Steps, said: StringIO, tmp_path: Path) -> None:
    steps.run(shell(tmp_path, "good", "true"), show=False)
    steps.run(shell(tmp_path, "bad", "false"), show=False)
    assert steps.summarize() is False
    text = said.getvalue()
    assert str(tmp_path / "logs/bad.log") in text
    assert str(tmp_path / "logs/good.log") not in text
    assert text.splitlines()[-1] == "1 passed, 1 failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_a_step_clean_up(steps: Steps, tmp_path: Path, number: int) -> None:
    """It reaches the step's whole group, and this process goes on."""
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    script = f"trap 'touch {cleaned}; exit 9' INT; touch {ready}; while :; do sleep 0.1; done"
    with steps.interruptible():
        thread = once(ready, lambda: os.kill(os.getpid(), number))
        result = steps.run(shell(tmp_path, "long", script), show=False)
        thread.join()
    assert (result.code, steps.interrupts) == (9, 1)
    assert cleaned.exists()


def test_the_third_interrupt_ends_a_step_that_will_not_stop(steps: Steps, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' INT TERM; touch {ready}; sleep 60; sleep 60"

    def interrupt() -> None:
        # Signals of one kind that come at once count as one.
        for count in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGINT)
            while steps.interrupts < count:
                time.sleep(0.01)

    with steps.interruptible():
        thread = once(ready, interrupt)
        result = steps.run(shell(tmp_path, "stubborn", script), show=False)
        thread.join()
    assert result.code == -signal.SIGKILL
    assert result.seconds < 30


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (43.2, "43 s"), (59.7, "1:00 min"), (127, "2:07 min")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
