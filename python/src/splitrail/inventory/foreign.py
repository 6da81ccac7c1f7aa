"""Read an inventory of any kind through `ansible-inventory`, which tells values but not their lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from splitrail.inventory.located import Document
from splitrail.inventory.reader import Group, Inventory, Variable

_SECONDS = 60


def load_foreign(source: str) -> Inventory:
    """Raises OSError and SubprocessError when it cannot be run, ValueError with what it said."""
    program = shutil.which("ansible-inventory") or str(Path(sys.executable).with_name("ansible-inventory"))
    done = subprocess.run(
        [program, "-i", source, "--list"], capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"ansible-inventory ended with code {done.returncode}")
    return parse(source, json.loads(done.stdout))


def parse(source: str, data: dict[str, Any]) -> Inventory:
    """Make an Inventory of what `ansible-inventory --list` printed; variables are those of hosts."""
    inventory = Inventory(Path(source), source)
    document = Document(source)
    for name, body in data.items():
        if name != "_meta":
            group = inventory.groups.setdefault(name, Group(name))
            group.hosts |= set(body.get("hosts", ()))
            group.children |= set(body.get("children", ()))
            for host in body.get("hosts", ()):
                inventory.hosts.setdefault(host, {})
    for host, variables in data.get("_meta", {}).get("hostvars", {}).items():
        own = inventory.hosts.setdefault(host, {})
        for name, value in variables.items():
            own[name] = inventory.declare(Variable(name, value, f"host {host}", document))
    document.lines[()] = 0
    inventory.finish()
    return inventory
