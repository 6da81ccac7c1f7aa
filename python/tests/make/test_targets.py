"""What `make check` and `make test` are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from splitrail.make import check, test
from splitrail.make.steps import Step, environment

ROOT = Path(__file__).parents[3]


def test_every_tool_of_the_checks_is_installed() -> None:
    for step in check.steps(ROOT):
        assert shutil.which(step.argv[0], path=environment()["PATH"]), step.argv[0]
        assert step.folder.is_dir()


def test_every_scenario_is_a_step() -> None:
    names = [step.name for step in test.steps(ROOT)]
    folders = {path.parent.name for path in (ROOT / "molecule").glob("*/converge.yml")}
    assert folders
    assert names == ["pytest-lab", *sorted(f"molecule-{name}" for name in folders), "pytest-site"]


def test_chosen_scenarios_run_alone_and_in_order() -> None:
    assert [step.name for step in test.steps(ROOT, ["rdma_fabric", "preflight"])] == [
        "molecule-rdma_fabric",
        "molecule-preflight",
    ]


def test_an_unknown_scenario_is_named() -> None:
    with pytest.raises(test.UnknownScenario, match=r"no scenario prefligth; there are .*preflight"):
        test.steps(ROOT, ["prefligth"])


def test_every_lab_that_is_taken_down_is_one() -> None:
    for inventory in test.LABS:
        files = (ROOT / inventory / "group_vars/all").glob("*.yml")
        assert any("lab_name:" in path.read_text(encoding="utf-8") for path in files), inventory


@pytest.mark.parametrize("script", ["setup.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    shell = "sh" if script.endswith(".sh") else "bash"
    done = subprocess.run([shell, "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `make test` did, with shell commands in place of its steps and no lab."""
    done: list[str] = []
    monkeypatch.setattr(test, "become_root", lambda _why: None)
    monkeypatch.setattr(test, "_down", lambda _runner, _root, when: done.append(f"down {when}"))
    return done


def given_steps(monkeypatch: pytest.MonkeyPatch, root: Path, scripts: dict[str, str]) -> None:
    chosen = [Step(name, ["sh", "-c", script], root) for name, script in scripts.items()]
    monkeypatch.setattr(test, "steps", lambda _root, _only: chosen)


@pytest.mark.parametrize(("first", "failed"), [("true", 0), ("echo the reason; false", 2)])
def test_a_failure_stops_nothing_and_is_not_forgotten(
    order: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    failed: int,
) -> None:
    given_steps(monkeypatch, tmp_path, {"first": first, "second": f"touch {tmp_path}/second"})
    said = StringIO()
    assert test.test(tmp_path, Console(file=said)) == min(failed, 1)
    assert (tmp_path / "second").exists()
    assert order == ["down before", "down after"]
    # What failed was run again, and failed again.
    assert said.getvalue().splitlines()[-1] == f"{2 if not failed else 1} passed, {failed} failed"


@pytest.mark.usefixtures("order")
def test_what_passes_when_it_is_run_again_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_steps(monkeypatch, tmp_path, {"first": "test -e once || { touch once; exit 1; }", "second": "true"})
    said = StringIO()
    assert test.test(tmp_path, Console(file=said, width=300)) == 0
    lines = said.getvalue().splitlines()
    assert any(line.startswith("FLAKY") and line.endswith("first.log") for line in lines)
    assert lines[-1] == "3 passed, 0 failed"


@pytest.mark.usefixtures("order")
def test_many_failures_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_steps(monkeypatch, tmp_path, dict.fromkeys("abc", "false"))
    said = StringIO()
    assert test.test(tmp_path, Console(file=said)) == 1
    assert said.getvalue().splitlines()[-1] == "0 passed, 3 failed"


@pytest.mark.usefixtures("order")
def test_the_end_of_a_failed_log_is_shown_again_before_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given_steps(monkeypatch, tmp_path, {"first": "echo the reason; false", "second": "echo all is well"})
    assert test.test(tmp_path, Console()) == 1
    said = capfd.readouterr().out
    assert said.count("all is well") == 1
    assert said.rindex("all is well") < said.rindex("the reason") < said.index("1 passed, 2 failed")


def test_an_interrupt_starts_nothing_more_and_takes_the_labs_down(
    order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a trap: a shell without one can lose an interrupt that comes just as it starts a program.
    first = f"trap 'exit 9' INT; kill -INT {os.getpid()}; while :; do sleep 0.1; done"
    scripts = {"first": first, "second": f"touch {tmp_path}/second"}
    given_steps(monkeypatch, tmp_path, scripts)
    assert test.test(tmp_path, Console(file=StringIO())) == 130
    assert not (tmp_path / "second").exists()
    assert order == ["down before", "down after"]


@pytest.mark.parametrize(("second_time", "code"), [("pass", 0), ("raise AssertionError", 1)])
def test_a_unit_test_that_failed_is_run_once_more_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_time: str, code: int
) -> None:
    (unit,) = [step for step in check.steps(tmp_path) if step.name == check.UNIT_TESTS]
    monkeypatch.setattr(check, "steps", lambda _root: [unit])
    (tmp_path / "python").mkdir()
    (tmp_path / "python/test_it.py").write_text(
        "from pathlib import Path\n\n"
        "def test_always():\n    Path('always').open('a').write('.')\n\n"
        "def test_busy():\n"
        "    if not Path('once').exists():\n        Path('once').touch()\n        raise AssertionError\n"
        f"    {second_time}\n"
    )
    said = StringIO()
    assert check.check(tmp_path, Console(file=said, width=300)) == code
    assert (tmp_path / "python/always").read_text() == "."
    assert ("FLAKY" in said.getvalue()) == (code == 0)
