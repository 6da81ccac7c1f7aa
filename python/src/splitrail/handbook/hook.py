"""What mkdocs calls while it builds the site (mkdocs.yml, hooks).

docs/ is the site's folder. Documents that lie elsewhere, and pages made from the code, are added here and are
in no folder: the repository holds nothing twice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from splitrail.cli import app
from splitrail.handbook import checks, commands
from splitrail.handbook.links import relink

ROOT = Path(__file__).resolve().parents[4]
# Documents outside of docs/, with their pages.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "molecule/README.md": "scenarios.md",
    "python/README.md": "package.md",
}
# Diagrams are drawn by a script that the theme fetches.
DIAGRAM = 'class="mermaid"'
LOADED = re.compile(
    r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+"
)


def documents() -> dict[str, str]:
    """Every document of the repository that is a page, with its page's path in the site."""
    roles = (str(path.relative_to(ROOT)) for path in ROOT.glob("roles/*/README.md"))
    beside = (str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file())
    return {
        **OUTSIDE,
        **{path: f"roles/{path.split('/')[1]}.md" for path in roles},
        **{path: path.removeprefix("docs/") for path in beside},
    }


def generated() -> dict[str, str]:
    """Pages made from the code: path in the site to Markdown."""
    made = {f"commands/{name}.md": text for name, text in commands.pages(app, "splitrail").items()}
    return {**made, "checks.md": checks.page(checks.in_suite(ROOT))}


def on_config(config: Any) -> Any:
    """Fill in the navigation: commands, roles, and what of docs/ it names nowhere."""
    listed = str(config.nav)
    more = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in listed]
    entries = {
        "commands/*": [{name: f"commands/{name}.md"} for name in commands.pages(app, "splitrail")],
        "roles/*": [{path.name: f"roles/{path.name}.md"} for path in sorted((ROOT / "roles").iterdir())],
    }

    def fill(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: fill(value) for key, value in entry.items()}
        if isinstance(entry, list):
            return [fill(one) for one in entry]
        return entries.get(entry, entry)

    config.nav = fill(config.nav) + ([{"More": more}] if more else [])
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is not in docs/."""
    for source, page in documents().items():
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to pages."""
    pages = documents()
    source = next((path for path, target in pages.items() if target == page.file.src_uri), None)
    return markdown if source is None else relink(markdown, source, pages)


def on_post_build(config: Any) -> None:
    """Refuse a site that would load anything from a network."""
    folder = Path(config.site_dir)
    for path in sorted(folder.rglob("*.html")):
        found = loads_from_network(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{path.relative_to(folder)} loads from a network: {', '.join(found)}")


def loads_from_network(html: str) -> list[str]:
    """What a browser would fetch for a page from another host. Links that a reader may follow are none."""
    found = [one for one in LOADED.findall(html) if 'rel="canonical"' not in one]
    return found + [DIAGRAM] * (DIAGRAM in html)
