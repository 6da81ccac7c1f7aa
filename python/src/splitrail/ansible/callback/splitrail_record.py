"""Write the run record of every ansible-playbook; see splitrail.run.record for what is in it.

Translates Ansible's callbacks into calls of the recorder and holds no other logic. SPLITRAIL_RUN_DIR names
the folder; without it a new one is made under ``runs`` beside ansible.cfg, and the variable is set so that
action plugins in forked workers find it.
"""

from __future__ import annotations

import atexit
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__ as ansible_version

from splitrail.ansible.warm import keep_shared, warm
from splitrail.daytwo import quarantine
from splitrail.run.messages import HIDDEN, failure_message
from splitrail.run.record import RecordError, Run, new_folder
from splitrail.run.recorder import Recorder, Status

DOCUMENTATION = """
name: splitrail_record
type: notification
short_description: Write the run record
description:
  - Writes run.json, events.jsonl, timings.json and verdict.json for every ansible-playbook.
  - Enable it with callbacks_enabled in ansible.cfg.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "splitrail_record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._recorder: Recorder | None = None

    def v2_playbook_on_start(self, playbook: Any) -> None:
        name = Path(playbook._file_name).resolve()
        root = Path(constants.CONFIG_FILE).resolve().parent if constants.CONFIG_FILE else Path.cwd()
        shown = str(name.relative_to(root)) if name.is_relative_to(root) else str(name)
        if self._recorder is None:
            # The one moment before all forks at which a plugin is asked.
            warm(root)
            keep_shared()
            self._begin(root, shown)
        else:
            self._write(lambda recorder: recorder.playbook(shown))

    def v2_playbook_on_play_start(self, play: Any) -> None:
        # get_path is "file:line" of the play itself, also when another playbook imported that file.
        verb = Path(play.get_path().rpartition(":")[0]).stem
        self._write(lambda recorder: recorder.given(play.get_variable_manager().extra_vars.keys()))
        self._write(lambda recorder: recorder.play(str(play.get_name()).strip(), verb))

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        del is_conditional
        self._write(lambda recorder: recorder.task(_task_name(task), _role(task), list(task.tags)))

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._write(lambda recorder: recorder.host_starts(host.get_name(), str(task._uuid)))

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result(result, "changed" if result.is_changed() else "ok")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._result(result, "skipped")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._result(result, "failed", failing=True, ignored=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._result(result, "unreachable", failing=True, ignored=bool(result.task.ignore_unreachable))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        notes = [*_left_out(), *stats.custom.get("_run", {}).get("splitrail_notes", [])]
        self._write(
            lambda recorder: recorder.end(
                failed=list(stats.failures), unreachable=list(stats.dark), notes=[str(note) for note in notes]
            )
        )
        for line in self._recorder.run.notes if self._recorder else []:
            self._display.warning(line)
        # Last, and as an error: whoever reads the end of the run must not take it for a proven one.
        for line in self._recorder.run.waivers if self._recorder else []:
            self._display.error(f"WAIVED: {line}")

    def _begin(self, root: Path, playbook: str) -> None:
        options = context.CLIARGS
        now = datetime.now(UTC)
        run = Run(
            # The whole bring-up goes by the name of the command for it.
            verb="up" if playbook == "site.yml" else Path(playbook).stem,
            started=now,
            playbooks=[playbook],
            inventory=[_real(source) for source in options.get("inventory") or ()],
            limit=options.get("subset"),
            tags=_tags(options.get("tags")),
            skip_tags=_tags(options.get("skip_tags")),
            check=bool(options.get("check")),
            versions={
                "splitrail": version("splitrail"),
                "ansible-core": ansible_version,
                "python": platform.python_version(),
            },
            revision=_revision(root),
        )
        try:
            given = os.environ.get("SPLITRAIL_RUN_DIR")
            folder = Path(given).absolute() if given else new_folder(root / "runs", now)
            self._recorder = Recorder(folder, run)
        except (OSError, RecordError) as error:
            self._display.error(
                f"No run record can be written: {error}. Nothing can be resumed or proven from it."
            )
            return
        os.environ["SPLITRAIL_RUN_DIR"] = str(folder)
        # Ansible sends no callback when it is interrupted; this runs then as well.
        atexit.register(self._recorder.interrupt)

    def _result(self, result: Any, status: Status, failing: bool = False, ignored: bool = False) -> None:
        task = result.task
        hidden = bool(task.no_log)
        message = failure_message(result.result, no_log=hidden) if failing else None
        censored = hidden or message == HIDDEN or "censored" in result.result
        name = _task_name(task, censored) if censored else str(result.task_fields.get("name") or task.action)
        self._write(
            lambda recorder: recorder.result(
                host=result.host.get_name(),
                task_id=str(task._uuid),
                task=name,
                role=_role(task),
                status=status,
                message=message,
                ignored=ignored,
                run_once=bool(task.run_once),
            )
        )

    def _write(self, step: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            step(self._recorder)
        except OSError as error:
            # Said once: a full disk must not bury the run under a warning per task and host.
            self._display.error(f"The run record ends here: {error}")
            self._recorder = None


def _task_name(task: Any, hidden: bool = False) -> str:
    """The task's name; as its author wrote it, untemplated, when it may hold what no_log is there to hide."""
    name = (task.get_ds() or {}).get("name") if hidden or task.no_log else task.name
    return str(name or task.action)


def _role(task: Any) -> str | None:
    return str(task._role.get_name()) if task._role else None


def _tags(given: Any) -> list[str]:
    """The tags asked for; Ansible's default, all of them, is no wish."""
    names = sorted({name.strip() for part in given or () for name in part.split(",")})
    return [] if names == ["all"] else names


def _left_out() -> list[str]:
    """A line a host that the inventories' quarantines keep out of this run."""
    found: list[str] = []
    for source in context.CLIARGS.get("inventory") or ():
        # One that cannot be read has ended the run before its first play.
        with suppress(quarantine.QuarantineError):
            found += [
                f"left out, in quarantine: {quarantine.line(host, entry)}"
                for host, entry in quarantine.left_out(quarantine.load(source)).items()
            ]
    return found


def _real(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _revision(root: Path) -> str | None:
    """The commit of the project, with -dirty when files differ from it; None outside a git tree."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
