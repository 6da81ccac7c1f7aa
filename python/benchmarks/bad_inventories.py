"""Shipped inventories made bad, each in one way drawn at random, and how each is refused.

usage: bad_inventories.py [--count N] [--seed S] [--verbs K] [--markdown]

Prints how many were refused, in which time, and examples; the mutations are those of
tests/inventory/mutate.py. The time is wall clock of the check alone, with the roles' specs read anew each
time as a command does; its CPU is told beside it. Of K of them the whole command `splitrail serve` is run
too, with an `ansible-playbook` and an `ssh` that would be seen if they were started. Exit code 1 when one
passed, was not named, took a second of CPU or more, or reached a host.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from splitrail.inventory.check import check
from splitrail.inventory.fault import Fault, InventoryError
from splitrail.inventory.vocabulary import load
from splitrail.project import Project

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1.0
# The tests make the mutations too.
sys.path.append(str(ROOT / "python/tests/inventory"))


def faults_of(inventory: Path) -> tuple[list[Fault], float, float]:
    """What is wrong with an inventory, and seconds: by the clock, and of this process's CPU."""
    began, used = time.perf_counter(), time.process_time()
    try:
        check(Project(ROOT), str(inventory))
    except InventoryError as error:
        return error.faults, time.perf_counter() - began, time.process_time() - used
    return [], time.perf_counter() - began, time.process_time() - used


def run_a_verb(inventory: Path, folder: Path) -> tuple[int, float, bool]:
    """Exit code and seconds of `splitrail serve`, and whether it started anything that reaches hosts."""
    marker = folder / "started"
    for name in ("ansible-playbook", "ssh"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    # The verb looks beside its own Python first, so the program itself is put in front by its module.
    code = (
        "import sys; sys.executable = sys.argv.pop(1) + '/python'; "
        "from splitrail.cli import main; sys.argv[0] = 'splitrail'; main()"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "serve", "-i", str(inventory)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode, time.perf_counter() - began, marker.exists()


def main() -> int:
    """Make them, refuse them, and print the figures."""
    parser = argparse.ArgumentParser(description="How generated bad inventories are refused.")
    parser.add_argument("--count", type=int, default=200, help="bad inventories to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbs", type=int, default=5, help="how many are given to a whole command too")
    parser.add_argument("--markdown", action="store_true", help="a table of the kinds, for a document")
    given = parser.parse_args()
    mutate, known, draw = import_module("mutate"), load(ROOT), random.Random(given.seed)  # noqa: S311  # no secret
    kinds: dict[str, list[float]] = {}
    examples: dict[str, str] = {}
    wrong: list[str] = []
    used: list[float] = []
    commands: list[tuple[int, float, bool]] = []
    with tempfile.TemporaryDirectory(prefix="splitrail-bad-") as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        while sum(map(len, kinds.values())) < given.count:
            kind = draw.choice(sorted(mutate.MUTATIONS))
            inventory = mutate.copy(draw.choice(mutate.GOOD), folder)
            try:
                bad = mutate.MUTATIONS[kind](inventory, draw, known)
            except mutate.Skip:
                continue
            faults, seconds, cpu = faults_of(inventory)
            kinds.setdefault(kind, []).append(seconds)
            used.append(cpu)
            named = [
                fault for fault in faults if bad.file in fault.file and bad.key in str(fault) and fault.cure
            ]
            if not named:
                wrong.append(
                    f"{bad.what}: {'passed' if not faults else 'named otherwise: ' + str(faults[0])}"
                )
            else:
                examples.setdefault(kind, str(named[0]).replace(f"{folder}/", ""))
            if len(commands) < given.verbs:
                commands.append(run_a_verb(inventory, folder / "bin"))
    show(kinds, examples, wrong, commands, markdown=given.markdown)
    sys.stdout.write(
        f"CPU of the check: median {sorted(used)[len(used) // 2]:.2f} s, most {max(used):.2f} s\n"
    )
    # By CPU: the clock also counts what else the machine does.
    slow = max(used) >= LIMIT_S
    return int(bool(wrong) or slow or any(code != 2 or started for code, _, started in commands))  # noqa: PLR2004  # could not run


def show(
    kinds: dict[str, list[float]],
    examples: dict[str, str],
    wrong: list[str],
    commands: list[tuple[int, float, bool]],
    *,
    markdown: bool,
) -> None:
    """Print the figures."""
    say = sys.stdout.write
    times = sorted(seconds for of in kinds.values() for seconds in of)
    if markdown:
        say("| made bad by | cases | slowest, s | one message |\n|---|---|---|---|\n")
    for kind, of in sorted(kinds.items()):
        if markdown:
            say(f"| {kind.replace('_', ' ')} | {len(of)} | {max(of):.2f} | {examples.get(kind, '')} |\n")
        else:
            say(f"{kind}: {len(of)}, slowest {max(of):.2f} s\n    {examples.get(kind, '')}\n")
    for line in wrong:
        say(f"WRONG {line}\n")
    median = times[len(times) // 2]
    say(f"\n{len(times) - len(wrong)} of {len(times)} refused with file, key and cure; ")
    say(f"median {median:.2f} s, slowest {times[-1]:.2f} s\n")
    if commands:
        slowest = max(seconds for _, seconds, _ in commands)
        started = sum(started for _, _, started in commands)
        codes = sorted({code for code, _, _ in commands})
        say(f"whole command: {len(commands)} runs, exit codes {codes}, slowest {slowest:.2f} s, ")
        say(f"{started} started Ansible or SSH\n")


if __name__ == "__main__":
    sys.exit(main())
