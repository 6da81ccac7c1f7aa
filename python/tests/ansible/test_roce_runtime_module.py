"""What the module makes of the program's answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.ansible.modules.splitrail_roce_runtime import ask

CHECK = '{"name": "roce_nic.pfc", "subject": "rail0", "ok": false}'


def program(tmp_path: Path, code: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(f"import sys\n{code}\n")
    return str(path)


@pytest.mark.parametrize("code", [0, 1])
def test_its_checks_are_taken_whether_they_passed_or_not(tmp_path: Path, code: int) -> None:
    text = f'print(\'{{"ok": false, "checks": [{CHECK}]}}\'); sys.exit({code})'
    assert ask(program(tmp_path, text), "check") == [
        {"name": "roce_nic.pfc", "subject": "rail0", "ok": False}
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.stderr.write('roce.json: spoilt'); sys.exit(2)", "roce.json: spoilt"),
        ("sys.exit(3)", "exit code 3"),
        ("print('no json')", "Expecting value"),
        ("print('{}')", "checks"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_a_program_that_gives_none_is_a_failed_check(tmp_path: Path, code: str, said: str) -> None:
    (check,) = ask(program(tmp_path, code), "check")
    assert check["ok"] is False
    assert said in check["measured"]
    assert check["hint"]


def test_a_node_that_was_never_configured(tmp_path: Path) -> None:
    (check,) = ask(str(tmp_path / "absent.py"), "check")
    assert "No such file" in check["measured"]
