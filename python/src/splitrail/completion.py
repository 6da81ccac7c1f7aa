"""What the Tab key offers beyond names of commands and options: inventories, hosts, groups, tags, runs.

`splitrail --install-completion` writes the shell's part (typer's). One table serves all commands, by the name
of the parameter, so that a new command completes without a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from splitrail.project import Project, ProjectError

# Folders beside the inventories that are none.
_NO_INVENTORIES = {"releases", "topologies", "workloads"}
_TAG = re.compile(r"\b[a-z_]+_(?:preflight|install|configure|verify)\b")
Offer = Callable[[Project, typer.Context], Iterator[str]]


def inventories(project: Project, context: typer.Context) -> Iterator[str]:
    """The project's inventories, as paths from where the user is."""
    del context
    for path in sorted((project.root / "inventories").iterdir()):
        if path.is_dir() and path.name not in _NO_INVENTORIES:
            yield _shown(path)


def hosts(project: Project, context: typer.Context) -> Iterator[str]:
    """The hosts of the inventory that the line names so far, or of ansible.cfg's."""
    yield from sorted({host for _, host in _members(_tree(project, context)) if host})


def hosts_and_groups(project: Project, context: typer.Context) -> Iterator[str]:
    """Those, and the groups."""
    members = list(_members(_tree(project, context)))
    yield from sorted({name for pair in members for name in pair if name})


def tags(project: Project, context: typer.Context) -> Iterator[str]:
    """Tags of the roles' steps."""
    del context
    for role in sorted(path.name for path in (project.root / "roles").iterdir()):
        text = (project.root / f"roles/{role}/tasks/main.yml").read_text(encoding="utf-8")
        yield from sorted({tag for tag in _TAG.findall(text) if tag.startswith(role)})


def runs(project: Project, context: typer.Context) -> Iterator[str]:
    """The recorded runs, newest first."""
    del context
    yield "last"
    yield from sorted((path.parent.name for path in project.runs.glob("*/run.json")), reverse=True)


def files(*folders: str) -> Offer:
    """YAML files of the project's folders, as paths."""

    def offer(project: Project, context: typer.Context) -> Iterator[str]:
        del context
        for folder in folders:
            yield from (_shown(path) for path in sorted((project.root / folder).glob("*.yml")))

    return offer


def workloads(project: Project, context: typer.Context) -> Iterator[str]:
    """Workloads by name."""
    del context
    yield from sorted(path.stem for path in (project.root / "inventories/workloads").glob("*.yml"))


# By a parameter's name; a command path before it where the name alone means several things.
OFFERS: dict[str, Offer] = {
    "inventory": inventories,
    "limit": hosts_and_groups,
    "tags": tags,
    "run": runs,
    "old": runs,
    "new": runs,
    "node": hosts,
    "hosts": hosts,
    "topology": files("inventories/topologies"),
    "workload": workloads,
    "release check files": files("inventories/releases"),
}


def offer_values(command: Any, path: str = "") -> None:
    """Give every parameter of a command, and of those below it, what the Tab key offers for it."""
    for name, below in getattr(command, "commands", {}).items():
        offer_values(below, f"{path} {name}".strip())
    for parameter in command.params:
        offer = OFFERS.get(f"{path} {parameter.name}") or OFFERS.get(parameter.name)
        if offer:
            parameter._custom_shell_complete = _completer(offer)


def _completer(offer: Offer) -> Callable[[typer.Context, Any, str], list[str]]:
    def complete(context: typer.Context, parameter: Any, incomplete: str) -> list[str]:
        del parameter
        try:
            found = offer(Project.find(Path.cwd()), context)
            # What stands before the last comma is done: --limit a,b
            done, comma, begun = incomplete.rpartition(",")
            return [done + comma + value for value in found if value.startswith(begun)]
        except (ProjectError, OSError, ValueError, yaml.YAMLError):
            # A shell that waits for words is no place for an error; the command itself tells it.
            return []

    return complete


def _tree(project: Project, context: typer.Context) -> Any:
    """An inventory's hosts.yml; of one that is no such folder nothing is known."""
    given = context.params.get("inventory")
    path = Path(project.inventory(str(given) if given else None))
    path = path / "hosts.yml" if path.is_dir() else path
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _members(tree: Any) -> Iterator[tuple[str, str]]:
    """Pairs of a group and a host of it; the host is empty for a group that names none itself."""
    for group, given in (tree if isinstance(tree, dict) else {}).items():
        content = given if isinstance(given, dict) else {}
        yield group, ""
        yield from ((group, host) for host in content.get("hosts") or {})
        yield from _members(content.get("children"))


def _shown(path: Path) -> str:
    """A path as a user in this folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
