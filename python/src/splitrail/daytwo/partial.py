"""When a run goes on without the hosts that failed in it, and when it stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitrail.daytwo import quarantine
from splitrail.daytwo.fits import why_not
from splitrail.inventory.check import applies, check
from splitrail.inventory.fault import InventoryError
from splitrail.inventory.resolve import Fleet
from splitrail.project import Project
from splitrail.run.record import Failure, Run

# The verbs in which a host fails for itself. In the others the cluster is one thing: what fails there on one
# host (a token, a deploy, the entrance) is seldom that host's fault, and leaving it out would hide it.
OF_ONE_HOST = frozenset({"preflight", "provision", "fabric", "image", "validate"})
# As splitrail.inventory.model says of splitrail_max_fail_percentage.
MAX_FAIL_PERCENTAGE = 25.0


@dataclass(frozen=True)
class Decision:
    """``hosts`` go into quarantine and the rest goes on; without any, ``why`` says why not."""

    hosts: Mapping[str, quarantine.Entry] = field(default_factory=dict)
    why: str = ""


def decide(
    project: Project,
    inventory: str,
    run: Run,
    folder: Path,
    *,
    gone_on: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> Decision:
    """Whether a run that failed goes on. ``gone_on``: the verbs after whose failures it did already.

    It does when only hosts failed that failed for themselves, they are few, and the topology fits the others.
    A verb is gone on with once: when others fail in it the second time, the fault lies in what is done.
    """
    verb = run.failed_verb
    failed = {failure.host: failure for failure in _own(run)}
    place = quarantine.file_of(inventory) if applies(project) else None
    if run.check or run.state != "ended" or verb not in OF_ONE_HOST or not failed or place is None:
        return Decision()
    why = _why_stop(project, inventory, failed, verb in gone_on, extra or {})
    if why:
        return Decision(why=f"not gone on without {', '.join(sorted(failed))}: {why}")
    return Decision({host: _entry(failure, verb, folder) for host, failure in failed.items()})


def _why_stop(
    project: Project, inventory: str, failed: Collection[str], again: bool, extra: Mapping[str, Any]
) -> str:
    """Why a run does not go on without the hosts that failed; empty when it does."""
    if again:
        return "other hosts failed in this verb before, so the fault is hardly theirs"
    try:
        declared, limit = _limit(project, inventory, extra)
    except InventoryError as error:
        return str(error)
    # One host is no pattern, however small the cluster; but 0 means none.
    allowed = max(1, int(declared * limit / 100)) if limit else 0
    if len(failed) > allowed:
        return (
            f"{len(failed)} of {declared} hosts failed, and splitrail_max_fail_percentage {limit:g} "
            f"allows {allowed}"
        )
    reasons = why_not(project, inventory, failed, extra)
    return f"the cluster does not work without: {'; '.join(reasons)}" if reasons else ""


def _own(run: Run) -> list[Failure]:
    """The failures of the failed verb that are a host's own."""
    return [
        failure
        for failure in run.open_failures
        if not failure.run_once and run.plays[failure.play].verb == run.failed_verb
    ]


def _limit(project: Project, inventory: str, extra: Mapping[str, Any]) -> tuple[int, float]:
    """Number of hosts, and the percentage of them that may fail."""
    found = check(project, inventory, extra)
    first = Fleet(found)[next(iter(found.hosts))]
    said = extra.get(
        "splitrail_max_fail_percentage", first.get("splitrail_max_fail_percentage", MAX_FAIL_PERCENTAGE)
    )
    return len(found.hosts), float(said)


def _entry(failure: Failure, verb: str, folder: Path) -> quarantine.Entry:
    word = "could not be reached" if failure.status == "unreachable" else "failed"
    evidence = quarantine.Evidence(
        record=folder.name, verb=verb, role=failure.role, task=failure.task, message=failure.message
    )
    return quarantine.Entry.now(f"{word} in {verb}", "run", evidence)


def mark(run: Run, hosts: Collection[str]) -> None:
    """Note in a run that it goes on without these hosts, which answers what it said for all of them too."""
    verb = run.failed_verb
    for failure in run.open_failures:
        if failure.host in hosts or (failure.run_once and run.plays[failure.play].verb == verb):
            failure.quarantined = True
    run.quarantined = sorted({*run.quarantined, *hosts})
