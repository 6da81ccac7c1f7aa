"""Every command's help has examples that the command line takes, and the exit codes."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.manual import EXAMPLES, EXIT_CODES

ROOT = get_command(app)


def leaves(command: Any, path: str = "") -> dict[str, Any]:
    """Every command that does something by itself: path to command."""
    below = getattr(command, "commands", {})
    alone = not below or getattr(command, "invoke_without_command", False)
    found = {path: command} if alone else {}
    for name, one in below.items():
        found |= leaves(one, f"{path} {name}".strip())
    return found


LEAVES = leaves(ROOT)


def parsed(line: str) -> list[str]:
    """The command path of a line. Raises typer's usage error for a line that the command line refuses."""
    words = shlex.split(line)
    assert words.pop(0) == "splitrail"
    command: Any = ROOT
    path = []
    while words and words[0] in getattr(command, "commands", {}):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    command.make_context(path[-1], words)
    return path


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_each_has_an_example_that_is_taken(path: str) -> None:
    assert EXAMPLES.get(path), f"splitrail {path}: give it an example in manual.py"
    for line in EXAMPLES[path]:
        assert parsed(line) == path.split(), line
    assert "Exit code" in LEAVES[path].epilog


def test_no_example_is_of_a_command_that_is_gone() -> None:
    assert set(EXAMPLES) - set(LEAVES) == set()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("splitrail up --gone", "No such option"),
        ("splitrail lab power", "Missing parameter: action"),
        ("splitrail lab power sideways lab-head", "'sideways' is not one of"),
    ],
)
def test_a_wrong_example_is_refused(line: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parsed(line)


def test_the_help_shows_them() -> None:
    said = CliRunner().invoke(app, ["fabric", "prove", "--help"]).output
    assert "splitrail fabric prove --sample 4 --resume" in said
    assert EXIT_CODES[:20] in said
