"""What was done last to a cluster, and what it serves now."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from splitrail.inventory.before import require
from splitrail.project import Project, ProjectError
from splitrail.run.playbook import CannotRun, Interrupts, Options, Step, run_step
from splitrail.run.record import last_run, load
from splitrail.verdict import Verdict, VerdictError, load_run_verdict

# The fact that playbooks/status.yml hands out with ansible.builtin.set_stats (data, not per_host).
STATUS_KEY = "splitrail_status"


def last(project: Project, inventory: str) -> dict[str, Any] | None:
    """The newest run that changed, or meant to change, this inventory's hosts; None when there is none."""
    found = last_run(project.runs, [inventory], check=False)
    if found is None:
        return None
    folder, run = found
    verdict: Verdict | None = None
    error = run.error
    try:
        verdict = load_run_verdict(folder)
    except VerdictError as broken:
        error = str(broken)
    return {
        "record": str(folder),
        "verb": run.verb,
        "state": run.state,
        "ok": run.ok,
        "started": run.started.isoformat(),
        "ended": run.ended.isoformat() if run.ended else None,
        "failed_play": run.failed_play,
        "failed_hosts": sorted({failure.host for failure in run.failures}),
        "verdict": verdict.model_dump(mode="json") if verdict else None,
        "error": error,
        "resume": f"splitrail {run.verb} -i {inventory} --resume"
        if not run.ok and run.state != "running"
        else None,
    }


def serving(project: Project, options: Options) -> tuple[dict[str, Any] | None, str | None]:
    """Ask the cluster what it serves: the fact of playbooks/status.yml, or why there is no answer."""
    return ask(project, "playbooks/status.yml", options, STATUS_KEY)


def ask(
    project: Project, playbook: str, options: Options, key: str
) -> tuple[dict[str, Any] | None, str | None]:
    """What a playbook that only looks hands out under ``key`` (set_stats), or why there is no answer.

    Leaves no run record: looking is not a run.
    """
    try:
        require(project, options.inventory, options.extra_vars)
        return _ask(project, project.playbook(playbook), options, key)
    except (CannotRun, ProjectError) as error:
        return None, str(error)


def _ask(
    project: Project, playbook: Path, options: Options, key: str
) -> tuple[dict[str, Any] | None, str | None]:
    with tempfile.TemporaryDirectory(prefix="splitrail-status-") as name:
        interrupts = Interrupts(lambda: None)
        with interrupts.caught():
            outcome = run_step(
                project,
                Step((playbook,)),
                options,
                Path(name),
                on_event=lambda _event: None,
                interrupts=interrupts,
            )
        # The record is read for its failures, and goes with the folder.
        known = load(Path(name)).failures if (Path(name) / "run.json").exists() else []
    answer = outcome.data.get(key)
    if isinstance(answer, dict):
        return answer, None
    if outcome.code:
        why = [f"{failure.host}: {failure.message}" for failure in known] or outcome.errors
        return None, "\n".join(why) or f"ansible-playbook ended with code {outcome.code}"
    return None, f"{playbook} handed out no {key}"
