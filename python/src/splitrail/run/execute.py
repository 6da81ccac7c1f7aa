"""Run a verb from the first check to the last line of its record, and say how it ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.daytwo import quarantine
from splitrail.daytwo.partial import decide, mark
from splitrail.inventory.before import given, require
from splitrail.project import Project
from splitrail.run.messages import cure
from splitrail.run.playbook import CannotRun, Interrupts, Options, Outcome, Step, run_step
from splitrail.run.progress import Reporter
from splitrail.run.record import RecordError, Run, Timings, hold, load, load_timings, new_folder
from splitrail.run.resume import PROOF, plan, proof_is_void, remaining_steps
from splitrail.verdict import Verdict, VerdictError, load_run_verdict, show

OK, FAILED, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Report:
    """How a run ended; ``code`` is the exit code of the command."""

    code: int
    folder: Path
    run: Run
    verdict: Verdict | None
    timings: Timings
    resume: str | None

    def document(self) -> dict[str, Any]:
        """The one JSON document of ``--json``."""
        return {
            "ok": self.code == OK,
            "exit_code": self.code,
            "record": str(self.folder),
            "run": self.run.model_dump(mode="json"),
            "verdict": self.verdict.model_dump(mode="json") if self.verdict else None,
            "timings": self.timings.model_dump(mode="json"),
            "resume": self.resume,
        }


def execute(
    project: Project,
    verb: str,
    playbook: str,
    options: Options,
    *,
    resume: bool,
    console: Console,
    go_on: bool = False,
    steps: Sequence[Step] | None = None,
) -> Report:
    """Run a verb, or what is left of it, and report.

    ``steps``: what is run in place of the playbook as a whole. With ``go_on`` hosts that fail for themselves
    are put into quarantine, and the others go on where the cluster works without them
    (`splitrail.daytwo.partial`); the report is a failed one all the same. A run that the gate stops because a
    node has booted since it was proven goes back, once, and proves it again.

    With ``resume`` the limit and tags are those of the run that is resumed. Its extra variables are not in
    its record, because they may be secret, so they must be given again.

    Raises CannotRun (and ProjectError) when nothing was started and no record made.
    """
    path = project.playbook(playbook)
    steps = list(steps or [Step((path,))])
    resumed: Path | None = None
    if resume:
        if options.limit is not None or options.tags:
            raise CannotRun("--resume takes --limit and --tags from the run it resumes: leave them out")
        rest = plan(project, verb, options.inventory, path, options.check)
        resumed, steps = rest.folder, rest.steps
        options = replace(options, limit=rest.run.limit, tags=tuple(rest.run.tags))

    require(project, options.inventory, options.extra_vars)
    now = datetime.now(UTC)
    try:
        folder = new_folder(project.runs, now)
        # The record exists before Ansible does, so that a run that never starts leaves its reason there too.
        lock = hold(folder)
        Run(
            verb=verb,
            started=now,
            inventory=[options.inventory],
            limit=options.limit,
            tags=sorted(options.tags),
            check=options.check,
            resumes=resumed.name if resumed else None,
        ).save(folder)
    except OSError as error:
        raise CannotRun(f"no run record can be made: {error}: free space or make it writable") from error
    try:
        outcome, interrupted = _run_steps(project, steps, options, folder, console)
        gone_on: set[str] = set()
        while go_on and outcome.code != OK and not interrupted:
            run = load(folder)
            at = _prove_again(run, folder, gone_on, console) or _quarantine_failed(
                project, options, run, folder, gone_on=gone_on, console=console
            )
            if at is None:
                break
            gone_on.add(at)
            verbs = project.verbs() if verb == "up" else [(verb, path)]
            steps = remaining_steps(run, verbs, start_at=at)
            outcome, interrupted = _run_steps(project, steps, options, folder, console)
    except CannotRun as error:
        outcome, interrupted = Outcome(code=COULD_NOT_RUN, errors=[str(error)]), False
    finally:
        os.close(lock)
    return _report(folder, outcome, interrupted=interrupted, command=_resume_command(verb, options))


def _run_steps(
    project: Project, steps: list[Step], options: Options, folder: Path, console: Console
) -> tuple[Outcome, bool]:
    counts = [project.count_plays(playbook) for step in steps for playbook in step.playbooks]
    total = sum(count or 0 for count in counts) if None not in counts else None
    with Reporter(console, total, verbose=options.verbosity > 0) as reporter:
        stop = "stopping; the tasks under way are ended (Ctrl-C again: end them at once)"
        interrupts = Interrupts(lambda: reporter.say(stop))
        outcome, done = Outcome(code=OK), 0
        with interrupts.caught():
            for step in steps:
                if step.hosts is not None:
                    reporter.say(f"resuming {step.playbooks[0].stem} for {', '.join(step.hosts)}")
                outcome = run_step(
                    project, step, options, folder, on_event=reporter.event, interrupts=interrupts
                )
                if outcome.code != OK:
                    break
                done += 1
                if interrupts.count:
                    break
    # A Ctrl-C that came when all was done interrupted nothing.
    return outcome, interrupts.count > 0 and done < len(steps)


def _prove_again(run: Run, folder: Path, gone_on: set[str], console: Console) -> str | None:
    """The verb to go back to where all that stopped a run is a proof that time or a reboot made void."""
    hosts = () if PROOF in gone_on or run.check else proof_is_void(run, folder)
    if not hosts:
        return None
    run.notes.append(f"proven again, as its proof had become void: {', '.join(hosts)}")
    for failure in run.open_failures:
        failure.proven_again = True
    run.save(folder)
    console.print(Text(f"{run.notes[-1]}; going back to {PROOF}"), soft_wrap=True)
    return PROOF


def _quarantine_failed(
    project: Project, options: Options, run: Run, folder: Path, *, gone_on: set[str], console: Console
) -> str | None:
    """Put the hosts that failed into quarantine where that is right, and return the verb to go on from."""
    verb = run.failed_verb
    extra = given(options.extra_vars)
    decision = decide(project, options.inventory, run, folder, gone_on=gone_on, extra=extra)
    why = decision.why
    if decision.hosts:
        try:
            file = quarantine.add(options.inventory, decision.hosts)
        except quarantine.QuarantineError as error:
            why = str(error)
    if not decision.hosts or why:
        if why:
            run.notes.append(why)
            run.save(folder)
        return None
    for host, entry in decision.hosts.items():
        console.print(Text(f"QUARANTINE: {quarantine.line(host, entry)}", "bold red"), soft_wrap=True)
    console.print(Text(f"the others go on from {verb}; {file} keeps the reasons"), soft_wrap=True)
    mark(run, decision.hosts)
    run.save(folder)
    return verb


def _report(folder: Path, outcome: Outcome, *, interrupted: bool, command: str) -> Report:
    run = load(folder)
    if interrupted or (run.ended is None and run.plays):
        run.state = "interrupted"
    elif run.ended is None:
        run.state = "ended"  # before its first play
    run.ended = run.ended or datetime.now(UTC)
    code = _judge(run, outcome, interrupted=interrupted)
    run.ok = code == OK
    run.save(folder)
    verdict: Verdict | None = None
    try:
        verdict = load_run_verdict(folder)
        timings = load_timings(folder)
    except (VerdictError, RecordError) as error:
        timings = Timings()
        run.error = run.error or str(error)
    left = code != OK and run.resumable and not (run.quarantined and run.through)
    return Report(code, folder, run, verdict, timings, command if left else None)


def _judge(run: Run, outcome: Outcome, *, interrupted: bool) -> int:
    """The exit code; puts the reason into run.error when it is not that of failed tasks."""
    if interrupted:
        run.error = "interrupted"
        return INTERRUPTED
    if run.hosts and {f.host for f in run.failures if f.status == "unreachable"} == set(run.hosts):
        run.error = f"no host could be reached: {', '.join(run.hosts)}"
        return COULD_NOT_RUN
    if run.open_failures or run.error:
        return FAILED
    # Hosts are out of service: nobody may take that for a run that is as it should be.
    if run.quarantined:
        run.error = _why_not_run(run, outcome)
        return FAILED
    run.error = _why_not_run(run, outcome)
    return COULD_NOT_RUN if run.error else OK


def _why_not_run(run: Run, outcome: Outcome) -> str | None:
    if outcome.code != OK:
        return "\n".join(outcome.errors) or f"ansible-playbook ended with code {outcome.code}"
    # A resumed run skips verbs, and with them tags that the first run did meet.
    if run.unmatched_tags and run.resumes is None:
        return f"no task that ran carries the tag {', '.join(run.unmatched_tags)}: correct --tags"
    if not run.hosts:
        return "no task ran on any host: check the inventory's groups, --limit and --tags"
    return None


def _resume_command(verb: str, options: Options) -> str:
    words = ["splitrail", verb, "-i", options.inventory, *(["--check"] if options.check else []), "--resume"]
    again = " (and the same -e)" if options.extra_vars else ""
    return shlex.join(words) + again


def summarize(report: Report, console: Console) -> None:
    """The end of a run for people: time per role, the verdict, why it failed, the record, how to go on."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    _show_roles(report.timings, console, say)
    if report.verdict is not None:
        show(report.verdict, console)
    run = report.run
    for failure in run.failures:
        where = f"{failure.role} : {failure.task}" if failure.role else failure.task
        first = failure.message.partition("\n")[0]
        say(f"{failure.status.upper()} {failure.host} | {where}: {first}", "red")
        if hint := cure(failure.message):
            say(f"    {hint}")
    if run.error:
        say(run.error, "red")
    for note in run.notes:
        say(note, "yellow")
    for waiver in run.waivers:
        say(f"WAIVED: {waiver}", "bold red")
    if run.quarantined:
        hosts = ", ".join(run.quarantined)
        say(f"IN QUARANTINE, and left out from now on: {hosts} (splitrail quarantine list)", "bold red")
    if run.ended is not None:
        word = {OK: "ok", FAILED: "failed", COULD_NOT_RUN: "could not run", INTERRUPTED: "interrupted"}
        seconds = (run.ended - run.started).total_seconds()
        mode = " (check mode)" if run.check else ""
        say(f"{run.verb}{mode}: {word[report.code]} after {seconds:.0f} s ({len(run.hosts)} hosts)", "bold")
    say(f"record: {report.folder}")
    if report.resume:
        say(f"go on with: {report.resume}")


def _show_roles(timings: Timings, console: Console, say: Callable[[str], None]) -> None:
    roles = sorted(timings.roles, key=lambda time: time.seconds, reverse=True)
    if not roles:
        return
    if console.is_terminal:
        table = Table("role", "seconds", title="Time per role", title_justify="left")
        for role in roles:
            table.add_row(role.role, f"{role.seconds:.1f}")
        console.print(table)
    else:
        say("seconds per role: " + ", ".join(f"{role.role} {role.seconds:.1f}" for role in roles))
