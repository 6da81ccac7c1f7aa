"""Start playbooks through ansible-runner, hand on their events, and stop them cleanly when asked to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ansible_runner
import yaml

from splitrail.daytwo import quarantine
from splitrail.project import Project
from splitrail.run.messages import scrub

Event = Mapping[str, Any]

# How long a Ctrl-C may go unnoticed; the runner asks for it between reads of the playbook's output.
_POLL_SECONDS = 0.25


class CannotRun(Exception):
    """Nothing can be run as asked; the message names what is wrong and the cure."""


@dataclass(frozen=True)
class Options:
    """What a user may say about a run. ``inventory`` is absolute."""

    inventory: str
    limit: str | None = None
    extra_vars: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    check: bool = False
    verbosity: int = 0


@dataclass(frozen=True)
class Step:
    """One ansible-playbook: playbooks in order, on the given hosts only, or on those of the options."""

    playbooks: tuple[Path, ...]
    hosts: tuple[str, ...] | None = None


@dataclass
class Outcome:
    """How one ansible-playbook ended."""

    code: int
    errors: list[str] = field(default_factory=list)  # what Ansible itself said went wrong
    data: dict[str, Any] = field(default_factory=dict)  # what the plays handed out with set_stats


class Interrupts:
    """Counts Ctrl-C and SIGTERM, which are to stop Ansible and not this process."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.count = 0
        self._on_first = on_first

    @contextmanager
    def caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._arrived) for number in self._SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._on_first()


def run_step(
    project: Project,
    step: Step,
    options: Options,
    run_dir: Path,
    *,
    on_event: Callable[[Event], None],
    interrupts: Interrupts,
) -> Outcome:
    """Run one ansible-playbook in the project's folder and wait for its end.

    Extra variables reach it through files of mode 0600 in a folder of mode 0700 that is removed afterwards,
    so no value stands on its command line. Raises CannotRun when a variable is malformed or Ansible missing.
    """
    environment = _environment(project, run_dir)
    if shutil.which("ansible-playbook", path=environment["PATH"]) is None:
        raise CannotRun("ansible-playbook is not installed: pip install -r requirements.txt")
    outcome = Outcome(code=0)
    stopper = _Stopper(interrupts)

    begun = False

    def handle(event: dict[str, Any]) -> bool:
        nonlocal begun
        stopper.pid = event.get("pid", stopper.pid)
        # Before the first play Ansible's complaints come as plain output; later only its errors count.
        begun = begun or event.get("event") == "playbook_on_start"
        if event.get("event") == "error" or not begun:
            outcome.errors += filter(None, [scrub(str(event.get("stdout") or "")).strip()])
        if event.get("event") == "playbook_on_stats":
            outcome.data |= event["event_data"].get("artifact_data") or {}
        on_event(event)
        return False  # keep no event file: the record has what is worth keeping, and no results

    with tempfile.TemporaryDirectory(prefix="splitrail-") as name:
        private = Path(name)
        (private / "env").mkdir(mode=0o700)
        # The runner reads these from a file only, once its other files are suppressed.
        (private / "env/settings").write_text(
            json.dumps({"pexpect_timeout": _POLL_SECONDS, "suppress_output_file": True}), encoding="utf-8"
        )
        *first, last = [str(playbook) for playbook in step.playbooks]
        runner = ansible_runner.run(
            private_data_dir=name,
            project_dir=str(project.root),
            cmdline=shlex.join([*_arguments(step, options, private), *first]),
            playbook=last,
            envvars=environment,
            fact_cache_type="memory",  # facts live as long as the run, as with ansible-playbook itself
            suppress_env_files=True,
            quiet=True,
            event_handler=handle,
            status_handler=_forget_environment,
            cancel_callback=stopper.must_kill,
        )
    outcome.code = 1 if runner.rc is None else int(runner.rc)
    return outcome


class _Stopper:
    """Turns interrupts into signals: the first lets Ansible stop as at its own terminal, the second ends its
    workers too, the third leaves no choice."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.pid: int | None = None
        self._interrupts = interrupts
        self._sent = 0

    def must_kill(self) -> bool:
        """Asked by the runner; True makes it kill the process group."""
        while self._sent < self._interrupts.count:
            self._sent += 1
            if self.pid is None or self._sent > 2:  # noqa: PLR2004  # nothing has run yet, or nothing else helped
                return True
            try:
                os.kill(self.pid, signal.SIGINT if self._sent == 1 else signal.SIGTERM)
            except ProcessLookupError:
                return False
        return False


def _forget_environment(status: Mapping[str, Any], runner_config: Any) -> None:
    """The runner writes the whole environment to a file before it starts; nobody needs it afterwards."""
    if status["status"] == "running":
        (Path(runner_config.artifact_dir) / "command").unlink(missing_ok=True)


def forks(project: Project, cpus: int | None = None, free_mib: int | None = None) -> int:
    """How many hosts are worked on at once: ansible.cfg's number at least, and what this machine carries.

    Eight a processor, because a fork mostly waits for its host, in a quarter of the free memory at 64 MiB a
    fork (20 MiB were measured, python/benchmarks/fleet_speed.py), and 256 at most.
    """
    least = int(project.setting("forks") or 5)  # Ansible's own default
    if free_mib is None:
        free_mib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    carried = min(8 * (cpus or os.cpu_count() or 1), free_mib // 4 // 64, 256)
    return max(least, carried)


def _environment(project: Project, run_dir: Path) -> dict[str, str]:
    return {
        # The tools of this very environment, also when it is not activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "ANSIBLE_CONFIG": str(project.config),
        # The runner sets these two, which then win over ansible.cfg: repeat what that says.
        "ANSIBLE_CALLBACK_PLUGINS": project.setting_paths("callback_plugins"),
        "ANSIBLE_HOST_KEY_CHECKING": os.environ.get("ANSIBLE_HOST_KEY_CHECKING")
        or project.setting("host_key_checking")
        or "True",
        # Ansible would go on with no host, and call that a success.
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        "ANSIBLE_FORKS": os.environ.get("ANSIBLE_FORKS") or str(forks(project)),
        "ANSIBLE_DISPLAY_ARGS_TO_STDOUT": "False",
        "ANSIBLE_FORCE_COLOR": "False",
        "ANSIBLE_NOCOLOR": "True",
        "SPLITRAIL_RUN_DIR": str(run_dir),
    }


def _arguments(step: Step, options: Options, private: Path) -> list[str]:
    arguments = ["-i", options.inventory]
    # A folder brings it along; beside a file that is named alone it would be passed over.
    beside = quarantine.file_of(options.inventory)
    if beside is not None and beside.exists() and Path(options.inventory).is_file():
        arguments += ["-i", str(beside)]
    for number, given in enumerate(options.extra_vars):
        arguments += ["-e", f"@{_extra_vars_file(given, private / f'vars-{number}.json')}"]
    if step.hosts is not None:
        limit = private / "limit"
        limit.write_text("\n".join(step.hosts) + "\n", encoding="utf-8")
        arguments += ["--limit", f"@{limit}"]
    elif options.limit is not None:
        arguments += ["--limit", options.limit]
    for tag in options.tags:
        arguments += ["--tags", tag]
    if options.check:
        arguments.append("--check")
    if options.verbosity:
        arguments.append(f"-{'v' * options.verbosity}")
    return arguments


def _extra_vars_file(given: str, own: Path) -> Path:
    if given.startswith("@"):
        path = Path(given[1:]).expanduser().absolute()
        if not path.is_file():
            raise CannotRun(f"-e {given}: {path}: no such file")
        return path
    values = parse_extra_vars(given)
    with os.fdopen(
        os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as stream:
        json.dump(values, stream)
    return own


def parse_extra_vars(given: str) -> dict[str, Any]:
    """The variables in ``key=value key2='a b'`` (values are strings) or in a YAML or JSON mapping.

    Raises CannotRun, which names the key at most, never the value.
    """
    if given.lstrip().startswith("{"):
        try:
            values = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise CannotRun("-e: not a YAML or JSON mapping: check its quotes and braces") from error
        if isinstance(values, dict):
            return values
        raise CannotRun("-e: not a YAML or JSON mapping")
    try:
        parts: Sequence[str] = shlex.split(given)
    except ValueError as error:
        raise CannotRun(f"-e: {error}: check its quotes") from error
    pairs = [part.partition("=") for part in parts]
    if not pairs or not all(equals and key.isidentifier() for key, equals, _ in pairs):
        raise CannotRun("-e: write key=value, a YAML mapping, or @FILE")
    return {key: value for key, _, value in pairs}
