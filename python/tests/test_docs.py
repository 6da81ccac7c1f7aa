"""What the documents point at exists: files, targets of make, commands, playbooks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from splitrail.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("roles/*/README.md"),
        ROOT / "molecule/README.md",
    ]
)
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def dead_links(text: str, folder: Path) -> list[str]:
    """Targets of relative Markdown links that lead nowhere."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [name for name in targets if "://" not in name and not (folder / name).exists()]


def code(text: str) -> str:
    """Only what a reader would type, a command a line: indented blocks and inline code."""
    blocks = [line for line in text.splitlines() if line.startswith("    ")]
    spans = re.findall(r"`([^`]+)`", text.replace("\n", " "))
    return "\n".join(part.strip() for line in blocks + spans for part in line.split("&&"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands() -> set[str]:
    return set(getattr(get_command(app), "commands", ()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_documents_point_at_what_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    typed = code(text)
    assert dead_links(text, document.parent) == []
    assert set(re.findall(r"^make ([a-z][a-z-]*)", typed, re.MULTILINE)) <= targets()
    assert set(re.findall(r"^splitrail ([a-z]+)", typed, re.MULTILINE)) <= commands()
    for playbook in re.findall(r"\bplaybooks/\w+\.yml", typed):
        assert (ROOT / playbook).is_file(), playbook


def test_dead_links_are_found() -> None:
    text = "[a](README.md) [b](gone.md) [c](https://example.org/x) [d](docs/gone.md#part)"
    assert dead_links(text, ROOT) == ["gone.md", "docs/gone.md"]


def test_every_command_and_target_is_documented() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in commands():
        assert f"`splitrail {command}`" in readme, command
    for target in targets():
        assert f"make {target}" in readme, target


def test_release_license_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert 'license = "Apache-2.0"' in (ROOT / "python/pyproject.toml").read_text(encoding="utf-8")
