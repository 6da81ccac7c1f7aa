"""The check that stands before every run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from splitrail.inventory.check import applies, check
from splitrail.inventory.fault import InventoryError
from splitrail.project import Project
from splitrail.run.playbook import CannotRun, parse_extra_vars


def require(project: Project, inventory: str, extra_vars: Iterable[str] = ()) -> None:
    """Raise CannotRun with everything that is wrong with an inventory, before a host is contacted.

    ``extra_vars`` as on the command line. Files that are encrypted, or not YAML, are Ansible's to read.
    """
    if not applies(project):
        return
    try:
        check(project, inventory, given(extra_vars))
    except InventoryError as error:
        raise CannotRun(f"no host was contacted, the inventory must be corrected first:\n{error}") from error


def given(extra_vars: Iterable[str]) -> dict[str, Any]:
    """The variables of ``-e``, as far as they can be read here. Raises CannotRun for malformed ones."""
    found: dict[str, Any] = {}
    for one in extra_vars:
        if not one.startswith("@"):
            found |= parse_extra_vars(one)
            continue
        try:
            values = yaml.safe_load(Path(one[1:]).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(values, dict):
            found |= values
    return found
