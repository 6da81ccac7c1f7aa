"""The writer of the tables in the roles' READMEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Exit

from splitrail.roles_doc import BEGIN, END, fill, refresh, table
from splitrail.roles_doc import main as write_all

OPTIONS: dict[str, dict[str, Any]] = {
    "thing_port": {"type": "int", "default": 8000, "description": "The port."},
    "thing_mode": {"type": "str", "required": True, "choices": ["a", "b"], "description": "Which | one."},
    "thing_disks": {
        "type": "list",
        "elements": "dict",
        "default": [{"path": "/x"}],
        "description": ["Disks.", "All of them."],
        "options": {"path": {"type": "path", "required": True, "description": "Where."}},
    },
}
SPECS = {"argument_specs": {"main": {"options": OPTIONS}}}


def role(tmp_path: Path, readme: str) -> Path:
    folder = tmp_path / "thing"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/argument_specs.yml").write_text(yaml.safe_dump(SPECS, sort_keys=False))
    (folder / "README.md").write_text(readme)
    return folder


def test_a_row_for_each_variable() -> None:
    assert table(SPECS).splitlines()[2:] == [
        "| `thing_port` | int | `8000` | The port. |",
        "| `thing_mode` | str | required | Which \\| one. One of `a`, `b`. |",
        "| `thing_disks` | list of dict | `[{path: /x}]` | Disks. All of them. "
        "Fields: `path` (path, required): Where. |",
    ]


def test_the_rest_of_the_readme_stays() -> None:
    text = fill(f"# thing\n{BEGIN}\nold\n{END}\nend\n", SPECS)
    assert text.startswith(f"# thing\n{BEGIN}\n| variable")
    assert text.endswith(f"|\n{END}\nend\n")
    assert "old" not in text
    assert fill(text, SPECS) == text


@pytest.mark.parametrize("readme", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_that_are_not_a_pair(readme: str) -> None:
    with pytest.raises(ValueError, match="want one"):
        fill(readme, SPECS)


def test_refresh_writes_only_when_asked_and_only_once(tmp_path: Path) -> None:
    folder = role(tmp_path, f"{BEGIN}{END}")
    assert refresh(folder, write=False)
    assert (folder / "README.md").read_text() == f"{BEGIN}{END}"
    assert refresh(folder, write=True)
    assert not refresh(folder, write=True)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = role(tmp_path, f"{BEGIN}{END}")
    for check, code, says in ((True, 1, "make docs"), (False, 0, "written"), (True, 0, "")):
        with pytest.raises(Exit) as ended:
            write_all(tmp_path, check=check)
        printed = "".join(capsys.readouterr())
        assert (ended.value.exit_code, says in printed) == (code, True)
    (folder / "README.md").write_text("no markers")
    with pytest.raises(Exit) as ended:
        write_all(tmp_path, check=False)
    assert ended.value.exit_code == 2
    assert f"{folder / 'README.md'}: want one" in capsys.readouterr().err
