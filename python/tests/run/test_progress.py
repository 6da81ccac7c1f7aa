from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from splitrail.run.progress import Progress, Reporter


def event(kind: str, stdout: str = "", **data: Any) -> dict[str, Any]:
    return {"event": kind, "event_data": data, "stdout": stdout}


RUN = [
    event("playbook_on_start"),
    event("playbook_on_play_start", play="Preflight"),
    event("playbook_on_task_start", task="Check [all]", role="preflight"),
    event("runner_on_ok", host="n1", res={"changed": True}),
    event("runner_on_skipped", host="n2"),
    event("runner_on_failed", host="n3", res={"msg": "password=hunter2secret is [wrong]"}),
    event("runner_on_failed", host="n4", res={"msg": "known"}, ignore_errors=True),
    event("runner_on_unreachable", host="n5", res={"msg": "Host key verification failed."}),
    event("error", stdout="boom"),
    {"event": "verbose", "stdout": "no event_data here"},
]


def test_it_counts_hosts_and_plays() -> None:
    progress = Progress(total=7, clock=lambda: 0.0)
    for one in RUN:
        progress.apply(one)
    assert progress.where == "play 1/7 Preflight | preflight : Check [all]"
    assert progress.hosts == "hosts ok 2, changed 1, failed 2"


def test_a_rescued_host_is_no_longer_failed() -> None:
    progress = Progress(total=None)
    progress.apply(event("runner_on_failed", host="n1", res={}))
    progress.apply(event("runner_on_ok", host="n1", res={}))
    assert progress.hosts == "hosts ok 1, changed 0, failed 0"


def test_the_total_goes_when_it_was_wrong() -> None:
    progress = Progress(total=1)
    for _ in range(2):
        progress.apply(event("playbook_on_play_start", play="P"))
    assert progress.where == "play 2 P"


def test_elapsed_reads_as_hours_minutes_seconds() -> None:
    now = 0.0
    progress = Progress(total=None, clock=lambda: now)
    now = 3725.9
    assert progress.elapsed == "1:02:05"


@pytest.mark.parametrize("terminal", [True, False])
def test_failures_show_at_once_with_their_cure(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, no_color=True)
    with Reporter(console, total=7) as reporter:
        for one in RUN:
            reporter.event(one)
    text = out.getvalue()
    assert "FAILED n3" in text
    assert "password=*** is [wrong]" in text
    assert "hunter2secret" not in text
    assert "failed, ignored n4" in text
    assert "UNREACHABLE n5" in text
    assert "known_hosts" in text


def test_without_a_terminal_a_task_is_a_line() -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=100), total=7) as reporter:
        for one in RUN[:3]:
            reporter.event(one)
    assert out.getvalue() == "[0:00:00] play 1/7 Preflight | preflight : Check [all]\n"


def test_verbose_shows_what_ansible_says_and_no_secret() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Reporter(console, total=None, verbose=True) as reporter:
        reporter.event(event("runner_on_ok", stdout="ok: [n1] Bearer abcdef123456", host="n1", res={}))
    assert out.getvalue() == "ok: [n1] Bearer ***\n"
