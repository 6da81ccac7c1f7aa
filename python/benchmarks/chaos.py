"""Break `splitrail up` on the lab in every way at several moments, resume it, and see whether all is whole.

usage: python python/benchmarks/chaos.py [--only FAULT[:VERB[:MOMENT]] ...]      as root, who may cut SSH

    FAULT   interrupt (Ctrl-C), kill (kill -9 of the controller), power (a node's plug is pulled),
            ssh (a node's SSH is cut by nftables), disk (the folder that the verb writes to is full)
    VERB    provision, cluster
    MOMENT  first, middle, last: that part of the verb's tasks is through

The lab must stand and serve (`make lab`). Before each trial what the verb writes is taken away on each node,
so that it has work. When the run has ended the fault is healed and `splitrail up --resume` is run; then
`splitrail up --check` says what it would still change. A trial is good when the broken run left a record
that says so, the resumed run ends ok, nothing is left to change, and every watched file is as it was on
every node. Prints a Markdown table; exit code 0 when all trials are good. A trial takes 3 to 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/lab"
NODE = "lab-decode"
FAULTS = ("interrupt", "kill", "power", "ssh", "disk")
# What each verb writes on every node; it is taken away before, and compared afterwards.
WRITTEN = {"provision": "/etc/containers/containers.conf.d/50-splitrail.conf", "cluster": "/etc/ray/ray.env"}
MOMENTS = {"middle": 0.5, "first": 0.0, "last": 0.95}
TABLE = "splitrail_chaos"
COLUMNS = [
    "fault",
    "verb",
    "moment",
    "run ended",
    "record says",
    "resumed",
    "left to change",
    "files",
    "good",
]
Json = dict[str, Any]


def start(*words: str) -> subprocess.Popen[str]:
    """Start a splitrail command on the lab."""
    return subprocess.Popen(
        [sys.executable, "-m", "splitrail", *words, "-i", str(INVENTORY), "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def run(*words: str) -> tuple[int, Json]:
    """Run one to its end: exit code and report, empty where it was killed."""
    command = start(*words)
    said, _ = command.communicate()
    return command.returncode, json.loads(said) if said.strip() else {}


def on(node: str, command: str) -> str:
    """What a command prints on a node, as root."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "splitrail",
            "lab",
            "ssh",
            node,
            "-i",
            str(INVENTORY),
            "--",
            f"sudo {command}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def nodes() -> dict[str, str]:
    """Name and address of each node."""
    done = subprocess.run(
        ["ansible-inventory", "-i", str(INVENTORY), "--list"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name: one["ansible_host"] for name, one in json.loads(done.stdout)["_meta"]["hostvars"].items()}


def files() -> dict[str, str]:
    """Checksums of the watched files by node."""
    return {node: on(node, f"sha256sum {' '.join(WRITTEN.values())}") for node in nodes()}


def tasks_of(folder: Path, verb: str) -> int:
    """How many results a run has had in a verb so far."""
    try:
        plays = {
            play["name"]
            for play in json.loads((folder / "run.json").read_text())["plays"]
            if play["verb"] == verb
        }
        lines = (folder / "events.jsonl").read_text().splitlines()
    except (OSError, ValueError):
        return 0
    return sum(json.loads(line)["play"] in plays for line in lines)


def descendants(pid: int) -> list[int]:
    """A process and all that it started, whatever session they are in."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
        except OSError:
            continue
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def kill_all(command: subprocess.Popen[str]) -> None:
    """End the controller at once, with everything that it runs."""
    for pid in descendants(command.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def nft(words: str) -> None:
    subprocess.run(["nft", *words.split()], check=True)


@contextmanager
def broken(fault: str, verb: str, command: subprocess.Popen[str]) -> Iterator[None]:
    """Inject a fault; it is healed at the end."""
    heal: Callable[[], object] = lambda: None  # noqa: E731  # nothing to heal, where a fault heals itself
    if fault == "interrupt":
        command.send_signal(signal.SIGINT)
    elif fault == "kill":
        kill_all(command)
    elif fault == "power":
        lab("power", "off", NODE)

        def heal() -> object:
            return lab("power", "on", NODE)

    elif fault == "ssh":
        address = nodes()[NODE]
        nft(f"add table ip {TABLE}")
        nft(f"add chain ip {TABLE} out {{ type filter hook output priority 0 ; }}")
        nft(f"add rule ip {TABLE} out ip daddr {address} tcp dport 22 drop")

        def heal() -> object:
            return nft(f"delete table ip {TABLE}")

    else:
        folder = Path(WRITTEN[verb]).parent
        on(NODE, f"sh -c 'mount -t tmpfs -o size=4k tmpfs {folder}; head -c 4096 /dev/zero > {folder}/full'")

        def heal() -> object:
            return on(NODE, f"umount {folder}")

    try:
        yield
    finally:
        heal()


def lab(*words: str) -> None:
    command = [sys.executable, "-m", "splitrail", "lab", *words, "-i", str(INVENTORY)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def shown(folder: Path) -> str:
    """How a run ended, as `splitrail runs show` says."""
    words = [sys.executable, "-m", "splitrail", "runs", "show", folder.name, "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["outcome"])


def trial(
    fault: str, verb: str, moment: str, counts: dict[str, int], whole: dict[str, str]
) -> tuple[list[str], bool]:
    """Break a run, heal, resume, and look: the row of the table, and whether it is good."""
    for node in nodes():
        on(node, f"rm -f {WRITTEN[verb]}")
    known = set((ROOT / "runs").glob("*/"))
    command = start("up")
    folder: Path | None = None
    # Of a verb's last task nothing would be left to break.
    wanted = max(1, min(int(counts[verb] * MOMENTS[moment]), counts[verb] - 1))
    while command.poll() is None:
        folder = folder or next(iter(set((ROOT / "runs").glob("*/")) - known), None)
        if folder is not None and tasks_of(folder, verb) >= wanted:
            break
        time.sleep(0.2)
    with broken(fault, verb, command):
        command.communicate()
    outcome = shown(folder) if folder else "no record"
    code, report = run("up", "--resume")
    ended_well = code != 0 and "ended ok" in str(report.get("error"))
    notes = [note for note in report.get("run", {}).get("notes", []) if note.startswith("proven again")]
    last, after = run("up", "--check")
    lines = (Path(after["record"]) / "events.jsonl").read_text().splitlines() if "record" in after else []
    changed = sum(json.loads(line)["changed"] for line in lines)
    same = files() == whole
    good = outcome != "no record" and (code == 0 or ended_well) and last == 0 and changed == 0 and same
    row = [fault, verb, moment, str(command.returncode), outcome]
    ended = "ok" if code == 0 else "was through" if ended_well else f"exit code {code}"
    row += ["; ".join([ended, *notes])]
    row += [
        str(changed) if last == 0 else f"exit code {last}",
        "whole" if same else "DIFFER",
        "yes" if good else "NO",
    ]
    return row, good


def main() -> int:
    """Run the trials that are asked for, or all 30."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[], metavar="FAULT[:VERB[:MOMENT]]")
    only = [one.split(":") for one in parser.parse_args().only]
    trials = [
        (fault, verb, moment)
        for moment in MOMENTS
        for fault in FAULTS
        for verb in WRITTEN
        if not only or any(list((fault, verb, moment)[: len(one)]) == one for one in only)
    ]
    code, report = run("up")
    if code:
        sys.stderr.write(f"the lab is not well, so nothing is broken: {report}\n")
        return 2
    counts = {verb: tasks_of(Path(report["record"]), verb) for verb in WRITTEN}
    whole = files()
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    good = 0
    for one in trials:
        row, well = trial(*one, counts, whole)
        good += well
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{good} of {len(trials)} good\n")
    return 0 if good == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
