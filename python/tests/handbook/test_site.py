"""The site's parts that need no mkdocs: links, pages of commands, and what a browser would fetch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

from splitrail.cli import app
from splitrail.handbook.commands import pages
from splitrail.handbook.links import relink

ROOT = Path(__file__).parents[3]
PAGES = {"README.md": "index.md", "docs/lab.md": "lab.md", "roles/preflight/README.md": "roles/preflight.md"}


@pytest.mark.parametrize(
    ("source", "text", "led"),
    [
        ("README.md", "[lab](docs/lab.md#nodes)", "[lab](lab.md#nodes)"),
        ("docs/lab.md", "[home](../README.md)", "[home](index.md)"),
        ("roles/preflight/README.md", "[lab](../../docs/lab.md)", "[lab](../lab.md)"),
        ("docs/lab.md", "[role](../roles/preflight)", "[role](roles/preflight.md)"),
        ("docs/lab.md", "[source](../python/x.py)", "source"),
        (
            "docs/lab.md",
            "[far](https://example.org/a) [here](#part)",
            "[far](https://example.org/a) [here](#part)",
        ),
    ],
)
def test_links_lead_to_pages(source: str, text: str, led: str) -> None:
    assert relink(text, source, PAGES) == led


def test_each_command_has_a_page() -> None:
    made = pages(app, "splitrail")
    assert set(made) == set(getattr(get_command(app), "commands", {}))
    assert "--resume" in made["up"]
    assert "splitrail lab power" in made["lab"]
    assert all("Exit codes" in text for text in made.values())


def test_the_theme_takes_no_font_from_a_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert config["strict"] is True


@pytest.fixture
def hook() -> ModuleType:
    """The hook, where mkdocs is installed (the extra `docs`)."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("the extra docs is not installed: make docs-site installs it")
    from splitrail.handbook import hook as module  # noqa: PLC0415  # it imports mkdocs

    return module


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', 1),
        ("<link rel=stylesheet href=//fonts.example/css>", 1),
        ('<pre class="mermaid">', 1),
        ('<a href="https://example.org">', 0),
        ('<link rel="canonical" href="https://example.org/">', 0),
        ('<script src="assets/x.js"></script>', 0),
    ],
)
def test_what_a_browser_would_fetch(hook: ModuleType, html: str, found: int) -> None:
    assert len(hook.loads_from_network(html)) == found
