"""Work out what is left of a run that did not end well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitrail.project import Project
from splitrail.run.playbook import CannotRun, Step
from splitrail.run.record import Run, last_run
from splitrail.verdict import Verdict, VerdictError

# The verb that makes the proof which the gate asks for; those after it follow from it.
PROOF = "fabric"
# What the gate finds of a proof that was right when it was made; making it again is the whole cure.
_VOID = frozenset({"gate.boot", "gate.age"})


@dataclass(frozen=True)
class Plan:
    """The steps that finish a run, and the record that they follow from."""

    folder: Path
    run: Run
    steps: list[Step]


def plan(project: Project, verb: str, inventory: str, playbook: Path, check: bool) -> Plan:
    """The rest of the last run of this inventory, verb and check mode.

    The verb that failed is run again from its start, and those after it follow on all hosts. It is not
    resumed in its middle: plays rely on facts and registered results of earlier ones, which live in memory.

    Whether the failed verb can be limited to the hosts that failed depends on what the others did:

    - When they took part in later plays, they went on without the failed ones and are through with that verb.
      Only the failed ones are behind, so the verb is run for them alone.
    - When they did not (any_errors_fatal, a gate, all hosts lost, Ctrl-C), they were stopped in the middle of
      it too, though none of them failed. A limit would leave them half done and hide them from cluster-wide
      plays, so the verb is run for all: what is done changes nothing.

    The verbs after it are never limited: a head that waits for its workers needs the variables of all hosts.

    Hosts that the run put into quarantine are left out of all that: the inventory no longer has them.

    Raises CannotRun when there is no such run, it goes on still, or nothing of it is left to do.
    """
    found = last_run(project.runs, [inventory], verb, check)
    if found is None:
        raise CannotRun(f"nothing to resume: no run of {verb} on {inventory} is recorded in {project.runs}")
    folder, run = found
    if run.state == "running":
        raise CannotRun(f"nothing to resume: the run recorded in {folder} goes on; wait for it, or stop it")
    if run.ok:
        raise CannotRun(f"nothing to resume: the last run of {verb} on {inventory} ended ok ({folder})")
    if run.quarantined and run.through:
        raise CannotRun(
            f"nothing to resume: all are through but the hosts in quarantine: {', '.join(run.quarantined)}; "
            f"repair them, then: splitrail quarantine release HOST, splitrail {verb} -i {inventory}"
        )
    return Plan(folder, run, remaining_steps(run, project.verbs() if verb == "up" else [(verb, playbook)]))


def remaining_steps(run: Run, verbs: list[tuple[str, Path]], start_at: str | None = None) -> list[Step]:
    """The steps left of a run through these verbs; see plan for why they are cut like this.

    ``start_at``: the verb to go on from for all hosts, whoever failed where.
    """
    names = [name for name, _ in verbs]
    if start_at is not None:
        return [Step(tuple(path for _, path in verbs[names.index(start_at) if start_at in names else 0 :]))]
    # A play of a playbook that is not there any more: nothing is known of what was done, so start again.
    start = names.index(run.failed_verb) if run.failed_verb in names else 0
    playbooks = tuple(path for _, path in verbs[start:])
    behind = _hosts_behind(run)
    if behind is None or run.failed_verb not in names:
        return [Step(playbooks)]
    steps = [Step(playbooks[:1], hosts=behind)]
    return [*steps, Step(playbooks[1:])] if playbooks[1:] else steps


def _hosts_behind(run: Run) -> tuple[str, ...] | None:
    """The hosts that alone are behind in the failed verb, or None when all are."""
    first = min(run.open_failures, key=lambda failure: failure.play, default=None)
    if run.state != "ended" or first is None or not first.others_went_on:
        return None
    return tuple(f.host for f in run.open_failures if run.plays[f.play].verb == run.failed_verb)


def proof_is_void(run: Run, folder: Path) -> tuple[str, ...]:
    """The hosts to prove again, where nothing but their proof's age, or a boot since, stopped a run.

    Empty where anything else failed: another NIC, or a proof that never passed, is for a person to look at.
    The gate leaves a verdict for each host that it let through or stopped; a host that failed otherwise has
    none, or a good one.
    """
    stopped: set[str] = set()
    for failure in run.open_failures:
        try:
            verdict = Verdict.load(folder / "verdicts/gate" / f"{failure.host}.json")
        except VerdictError:
            return ()
        found = {check.name for check in verdict.failed}
        if not found or not found <= _VOID:
            return ()
        stopped |= {check.host for check in verdict.failed}
    return tuple(sorted(stopped))
