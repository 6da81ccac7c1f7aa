"""Load once, before Ansible forks, what each of its workers would load for itself.

Ansible runs each task on each host in a fresh fork of the controller, and a fork keeps nothing: a filter that
reads a release imports its models, and Ansible looks through every filter plugin for its name, once for every
task and host. What the parent has loaded the forks share. With it a task that reads `release` costs about as
much as one that does not (python/benchmarks/fleet_speed.py).
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterable
from pathlib import Path

from ansible.plugins import loader

from splitrail.release_cache import preload

# What filters, action plugins and their models import.
_MODULES = (
    *("splitrail.placing", "splitrail.proof", "splitrail.rails", "splitrail.release", "splitrail.topology"),
    *("splitrail.transport", "splitrail.verdict"),
)
_PLUGINS = {
    "action": ("command", "copy", "debug", "file", "normal", "set_fact", "set_stats", "template"),
    "connection": ("local", "ssh"),
    "become": ("sudo",),
    "shell": ("sh",),
    "lookup": ("file", "password"),
}


def warm(root: Path, modules: Iterable[str] = _MODULES) -> None:
    """Load modules, filters, tests and the usual plugins, and check the project's releases. What cannot be
    loaded is left to whoever needs it, which says what is wrong with it."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    preload(root / "inventories/releases")
    for plugins in (loader.filter_loader, loader.test_loader):
        # The loader goes through all of them to find one; every name is known afterwards.
        list(plugins.all())
    for kind, names in _PLUGINS.items():
        for name in names:
            getattr(loader, f"{kind}_loader").get(name, class_only=True)


def keep_shared() -> None:
    """Have every later fork share its parent's memory for as long as it can.

    Memory is shared until somebody writes to it, and Python's collector of garbage writes to each object that
    it looks at. In a fork, which soon ends, it does not run; in the parent it counts what was there as old.
    """
    os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze, after_in_child=gc.disable)
