"""`make check`: everything that can be found wrong without a machine."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from splitrail.make.steps import Step, Steps, clock, show_log

UNIT_TESTS = "unit-tests"
_UNIT = "not lab and not site"
# More workers than this only wait for each other's Ansible runs and simulated hosts.
_SPREAD = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")


def steps(root: Path) -> list[Step]:
    """The checks, the longest first: they run side by side."""
    python = root / "python"
    # Specs equal to defaults and the syntax of every playbook with every inventory are unit tests too.
    return [
        Step(UNIT_TESTS, ["pytest", "-m", _UNIT, *_SPREAD], python),
        Step("ansible-lint", ["ansible-lint", "--nocolor"], root),
        Step("mypy", ["mypy"], python),
        Step("yamllint", ["yamllint", "--strict", "."], root),
        Step("ruff-lint", ["ruff", "check", "python", "roles", "molecule"], root),
        Step("ruff-format", ["ruff", "format", "--check", "python", "roles", "molecule"], root),
        Step("role-docs", [sys.executable, "-m", "splitrail.roles_doc", "--check"], root),
    ]


def check(root: Path, console: Console) -> int:
    """Run all checks, as many at once as there are processors; returns the exit code."""
    runner = Steps(root / "build/check", console)
    with runner.interruptible(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        running = [pool.submit(runner.run, step, show=False) for step in steps(root)]
        for future in as_completed(running):
            result = future.result()
            runner.say(f"{result.name}: {'ok' if result.ok else 'FAILED'} after {clock(result.seconds)}")
            if runner.interrupts:
                pool.shutdown(wait=False, cancel_futures=True)
                break
        else:
            _again(runner, root)
    # At the end, each in one piece, where it can be read.
    for result in runner.results:
        if not result.ok:
            runner.say(f"\n--- {result.name}", "bold red")
            show_log(result.log)
    ok = runner.summarize()
    return 130 if runner.interrupts else 0 if ok else 1


def _again(runner: Steps, root: Path) -> None:
    """Run the unit tests that failed once more, now that nothing runs beside them.

    They start real processes, and wait for them with limits that a busy machine may pass.
    """
    (failed,) = [result for result in runner.results if result.name == UNIT_TESTS]
    if not failed.ok:
        alone = ["pytest", "-m", _UNIT, "--last-failed", "--last-failed-no-failures=none"]
        runner.run_again(Step(UNIT_TESTS, alone, root / "python"), failed, show=False)
