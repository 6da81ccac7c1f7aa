"""`make test`, after `make check`: everything that needs machines, on labs that it takes down again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from splitrail.lab.invoker import become_root, invoker, own
from splitrail.make.steps import Result, Step, Steps, clock, show_log

# Every inventory whose lab a step may bring up.
LABS = ("molecule/inventory", "inventories/lab", "inventories/lab-fabric")
# What steps write into the tree.
_WRITTEN = ("build", "runs", ".lab", ".secrets")
# Enough for the failed task and what led to it.
_TAIL_LINES = 80
# More failures than this are no bad luck.
_FEW = 2


class UnknownScenario(Exception):
    """A scenario was asked for that there is not."""


def scenarios(root: Path) -> list[str]:
    """The names of all Molecule scenarios."""
    return sorted(path.parent.name for path in root.glob("molecule/*/molecule.yml"))


def steps(root: Path, only: Sequence[str] = ()) -> list[Step]:
    """The lab's own tests, every scenario, and the whole site; with ``only``, just these scenarios.

    Raises UnknownScenario.
    """
    known = scenarios(root)
    if unknown := [name for name in only if name not in known]:
        raise UnknownScenario(f"no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    # On 80 columns, its default, Molecule breaks what Ansible says of a failure into many lines.
    wide = {"COLUMNS": "240"}
    molecule = [
        Step(f"molecule-{name}", ["molecule", "test", "-s", name], root, wide) for name in only or known
    ]
    if only:
        return molecule
    return [_pytest(root, "lab"), *molecule, _pytest(root, "site")]


def test(root: Path, console: Console, only: Sequence[str] = ()) -> int:
    """Run all steps one after the other, whatever fails; returns the exit code.

    Raises UnknownScenario, or LabError when root is needed and cannot be had.
    """
    chosen = steps(root, only)
    become_root("makes the labs that the tests run on")
    os.umask(0o022)
    if invoker():
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # caches of root's would stay in a person's tree
    runner = Steps(root / "build/test", console)
    failed: list[tuple[Step, Result]] = []
    try:
        with runner.interruptible():
            # A lab that stands would take the memory that the tests need, and they want to start from none.
            _down(runner, root, "before")
            for number, step in enumerate(chosen, 1):
                if runner.interrupts:
                    break
                runner.say(f"\n=== {step.name} ({number} of {len(chosen)})", "bold")
                result = runner.run(step, show=True)
                if not result.ok:
                    failed.append((step, result))
                runner.say(
                    f"=== {step.name}: {'ok' if result.ok else 'FAILED'} after {clock(result.seconds)}"
                )
            _again(runner, failed)
        interrupted = runner.interrupts > 0
    finally:
        # Counts interrupts from none again: another Ctrl-C stops the tidying, and not before.
        runner.interrupts = 0
        with runner.interruptible():
            _down(runner, root, "after")
        _give_back(root)
    # Where only the end of a long output is kept, the log's path is of no use.
    for result in runner.results:
        if not result.ok:
            runner.say(f"\n--- the end of {result.name}", "bold red")
            show_log(result.log, _TAIL_LINES)
    ok = runner.summarize()
    return 130 if interrupted else 0 if ok else 1


def _again(runner: Steps, failed: Sequence[tuple[Step, Result]]) -> None:
    """Run what failed once more: emulated machines and shared hosts have bad minutes, faults fail twice."""
    if len(failed) > _FEW:
        return
    for step, result in failed:
        if runner.interrupts:
            return
        runner.say(f"\n=== {step.name} again", "bold")
        runner.run_again(step, result, show=True)


def _pytest(root: Path, marker: str) -> Step:
    # Root writes no caches into a person's tree; a run without a single test fails (exit code 5).
    return Step(f"pytest-{marker}", ["pytest", "-v", "-p", "no:cacheprovider", "-m", marker], root / "python")


def _down(runner: Steps, root: Path, when: str) -> None:
    for inventory in LABS:
        name = f"lab-down-{when}-{Path(inventory).parts[-1]}"
        runner.run(
            Step(name, [sys.executable, "-m", "splitrail.lab", "down", "-i", inventory], root), show=True
        )


def _give_back(root: Path) -> None:
    """Give what root wrote into the tree to the person behind sudo."""
    if invoker() is None:
        return
    for top in (root / name for name in _WRITTEN):
        for path in (top, *top.rglob("*")):
            if path.exists() and not path.is_symlink():
                own(path)
