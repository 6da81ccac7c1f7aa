"""Read a YAML inventory with group_vars and host_vars in Ansible's order, and keep where each value stands.

`ansible-inventory` would tell the same values, but neither their files nor their lines, and takes a second.
An inventory of another kind (INI, a script, a plugin) is read through it: `splitrail.inventory.foreign`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitrail.daytwo import quarantine
from splitrail.inventory.fault import Fault, near
from splitrail.inventory.located import Document, Place, read

_YAML = frozenset({".yml", ".yaml", ".json"})
# What Ansible passes over in a folder of inventories.
_IGNORED = frozenset({".orig", ".cfg", ".retry", ".pyc", ".pyo", ".md", ".bak", ".j2"})
_RANGE = re.compile(r"\[(\w+):(\w+)(?::(\d+))?\]")
_GROUP_KEYS = ("hosts", "vars", "children")


class NotYaml(Exception):
    """The inventory, or a part of it, is of a kind that is not read here."""


@dataclass(frozen=True, eq=False)
class Variable:
    """One declaration of a variable. ``scope``: ``group NAME`` or ``host NAME``."""

    name: str
    value: Any
    scope: str
    document: Document
    place: Place = ()

    @property
    def file(self) -> str:
        return self.document.file

    def line(self, inside: Place = ()) -> int:
        """The line of the value, or of a part of it."""
        return self.document.line((*self.place, *inside))

    def fault(self, said: str, cure: str, hosts: tuple[str, ...] = (), inside: Place = ()) -> Fault:
        """A fault of the value, or of a part of it; ``hosts`` where it is wrong on some only."""
        if not hosts and self.scope.startswith("host "):
            hosts = (self.scope.removeprefix("host "),)
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inside)
        return Fault(self.file, self.line(inside), self.name + path, said, cure, hosts)


@dataclass
class Group:
    """A group; ``order`` sorts groups as Ansible lays their variables over each other."""

    name: str
    hosts: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[str, Variable] = field(default_factory=dict)
    depth: int = 0

    @property
    def order(self) -> tuple[int, int, str]:
        given = self.files.get("ansible_group_priority") or self.variables.get("ansible_group_priority")
        priority = given.value if given and isinstance(given.value, int) else 1
        return self.depth, priority, self.name


@dataclass
class Inventory:
    """What a folder or file declares."""

    source: Path
    shown: str
    groups: dict[str, Group] = field(default_factory=dict)
    hosts: dict[str, dict[str, Variable]] = field(default_factory=dict)
    host_files: dict[str, dict[str, Variable]] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)  # where a host or group stands first
    faults: list[Fault] = field(default_factory=list)
    # Every declaration, also those that another one hides.
    declared: list[Variable] = field(default_factory=list)
    encrypted: bool = False  # some file's variables are not known

    @property
    def folder(self) -> Path:
        return self.source if self.source.is_dir() else self.source.parent

    def fault(self, name: str, said: str, cure: str, key: str = "", hosts: tuple[str, ...] = ()) -> Fault:
        """A fault of a host or group, where it stands first."""
        file, line = self.places.get(name, (self.shown, 0))
        return Fault(file, line, key or name, said, cure, hosts)

    def members(self, group: str) -> list[str]:
        """The hosts of a group and of its children, sorted."""
        found: set[str] = set()
        todo, seen = [group], set()
        while todo:
            name = todo.pop()
            if name in self.groups and name not in seen:
                seen.add(name)
                found |= self.groups[name].hosts
                todo += self.groups[name].children
        return sorted(found)

    def groups_of(self, host: str) -> list[Group]:
        """The groups that a host is in, in the order of their variables; `all` is first."""
        return sorted(
            (group for group in self.groups.values() if host in self._members[group.name]),
            key=lambda group: group.order,
        )

    def declare(self, variable: Variable) -> Variable:
        """Keep a declaration and return it."""
        self.declared.append(variable)
        return variable

    def finish(self) -> None:
        """Once all is read: whose children are whose."""
        every = self.groups.setdefault("all", Group("all"))
        nested = {child for group in self.groups.values() for child in group.children}
        every.children |= {name for name in self.groups if name not in nested and name != "all"}
        every.hosts |= set(self.hosts)
        _set_depths(self.groups)
        self._members = {name: set(self.members(name)) for name in self.groups}

    def leave_out(self, hosts: Iterable[str]) -> None:
        """Take hosts out of every group, as the inventory plugin for the quarantine does."""
        gone = set(hosts) & set(self.hosts)
        self.hosts = {host: own for host, own in self.hosts.items() if host not in gone}
        for group in self.groups.values():
            group.hosts -= gone
        self.finish()

    def lay_over(self, extra: Mapping[str, Any]) -> None:
        """Let the variables of ``-e`` win on every host, as Ansible does."""
        document = Document("-e")
        for host in self.hosts:
            own = self.host_files.setdefault(host, {})
            own.update({name: Variable(name, value, "-e", document) for name, value in extra.items()})

    def of(self, host: str) -> dict[str, Variable]:
        """The variables of a host, each by the declaration that wins."""
        groups = self.groups_of(host)
        found: dict[str, Variable] = {}
        for group in groups:
            found |= group.variables
        for group in groups:
            found |= group.files
        return found | self.hosts[host] | self.host_files.get(host, {})


def load(source: Path) -> Inventory:
    """Read an inventory. What is wrong with its files is in its ``faults``; raises NotYaml."""
    inventory = Inventory(source, _shown(source))
    files = _inventory_files(source) if source.is_dir() else [source]
    for path in files:
        if path.name == quarantine.NAME:
            continue
        if path.suffix not in _YAML or os.access(path, os.X_OK):
            raise NotYaml(f"{path}: not a YAML file")
        document = read(path, _shown(path))
        inventory.faults += document.faults
        if isinstance(document.value, dict) and isinstance(document.value.get("plugin"), str):
            raise NotYaml(f"{path}: the configuration of an inventory plugin")
        for name, body in _mapping(inventory, document, document.value, ()):
            _read_group(inventory, document, name, body, (name,))
    inventory.finish()
    for name in _variable_sets(inventory, "group_vars"):
        _read_files(inventory, "group", name)
    for name in _variable_sets(inventory, "host_vars"):
        _read_files(inventory, "host", name)
    _leave_out_quarantine(inventory)
    return inventory


def _leave_out_quarantine(inventory: Inventory) -> None:
    """After the variables: files of a host in quarantine are no strangers."""
    try:
        inventory.leave_out(quarantine.left_out(quarantine.load(inventory.source)))
    except quarantine.QuarantineError as error:
        cure = "correct it, or delete it and put hosts in again"
        inventory.faults.append(Fault(quarantine.NAME, 0, "", str(error), cure))


def _shown(path: Path) -> str:
    """A path as a user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _inventory_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix not in _IGNORED
        and not path.name.startswith((".", "~"))
        and not path.name.endswith("~")
    )


def _mapping(inventory: Inventory, document: Document, value: Any, place: Place) -> list[tuple[str, Any]]:
    """The entries of what must be a mapping; nothing, and a fault, where it is something else."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [(str(key), entry) for key, entry in value.items()]
    inventory.faults.append(
        Fault(
            document.file,
            document.line(place),
            ".".join(map(str, place)),
            f"is {_kind(value)}; allowed: a mapping of names",
            "write `name:` lines below it, indented by two",
        )
    )
    return []


def _read_group(inventory: Inventory, document: Document, name: str, body: Any, place: Place) -> None:
    group = inventory.groups.setdefault(name, Group(name))
    inventory.places.setdefault(name, (document.file, document.line(place)))
    for key, entry in _mapping(inventory, document, body, place):
        here = (*place, key)
        if key == "hosts":
            for pattern, given in _mapping(inventory, document, entry, here):
                variables = _mapping(inventory, document, given, (*here, pattern))
                for host in expand(pattern):
                    group.hosts.add(host)
                    inventory.places.setdefault(host, (document.file, document.line((*here, pattern))))
                    own = inventory.hosts.setdefault(host, {})
                    for var, value in variables:
                        declared = Variable(var, value, f"host {host}", document, (*here, pattern, var))
                        own[var] = inventory.declare(declared)
        elif key == "vars":
            for var, value in _mapping(inventory, document, entry, here):
                declared = Variable(var, value, f"group {name}", document, (*here, var))
                group.variables[var] = inventory.declare(declared)
        elif key == "children":
            for child, inner in _mapping(inventory, document, entry, here):
                group.children.add(child)
                _read_group(inventory, document, child, inner, (*here, child))
        else:
            inventory.faults.append(
                Fault(
                    document.file,
                    document.line(here),
                    ".".join(map(str, here)),
                    f"is no key of a group; allowed: {', '.join(_GROUP_KEYS)}{near(key, _GROUP_KEYS)}",
                    "put a host below `hosts`, a group below `children`, a variable below `vars`",
                )
            )


def expand(pattern: str) -> list[str]:
    """The hosts that a pattern such as ``node[01:16]`` or ``rack-[a:c]`` names."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last, step = found[1], found[2], int(found[3] or 1)
    if first.isdigit() and last.isdigit():
        names = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1, step)]
    else:
        names = [chr(code) for code in range(ord(first[0]), ord(last[0]) + 1, step)]
    return [
        host for name in names for host in expand(pattern[: found.start()] + name + pattern[found.end() :])
    ]


def _set_depths(groups: dict[str, Group]) -> None:
    """The longest way from `all`, as Ansible counts it; a group below itself keeps what it has."""
    todo = [("all", 0, frozenset[str]())]
    while todo:
        name, depth, above = todo.pop()
        if name in groups and name not in above:
            groups[name].depth = max(groups[name].depth, depth)
            todo += [(child, depth + 1, above | {name}) for child in groups[name].children]


def _variable_sets(inventory: Inventory, kind: str) -> list[str]:
    folder = inventory.folder / kind
    if not folder.is_dir():
        return []
    return sorted({_stem(path) for path in folder.iterdir() if not path.name.startswith((".", "~"))})


def _stem(path: Path) -> str:
    """A host's name may hold dots, so only the endings of variable files are cut."""
    return path.stem if path.suffix in _YAML and not path.is_dir() else path.name


def _read_files(inventory: Inventory, kind: str, name: str) -> None:
    """group_vars/NAME or host_vars/NAME: a file, or a folder of files in the order of their names."""
    base = inventory.folder / f"{kind}_vars"
    paths = sorted(path for path in base.iterdir() if _stem(path) == name and not path.name.startswith("."))
    known = inventory.groups if kind == "group" else inventory.hosts
    if name not in known:
        inventory.faults.append(
            Fault(
                _shown(paths[0]),
                0,
                name,
                f"the inventory has no {kind} {name}{near(name, known)}",
                f"rename it to a {kind} of {inventory.shown}, or take it out",
            )
        )
        return
    target = inventory.groups[name].files if kind == "group" else inventory.host_files.setdefault(name, {})
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix in {*_YAML, ""} and not file.name.startswith((".", "~")):
                document = read(file, _shown(file))
                inventory.faults += document.faults
                inventory.encrypted |= document.encrypted
                for var, value in _mapping(inventory, document, document.value, ()):
                    target[var] = inventory.declare(Variable(var, value, f"{kind} {name}", document, (var,)))


def _kind(value: Any) -> str:
    return {str: "a text", list: "a list", bool: "true or false", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
