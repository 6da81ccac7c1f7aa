"""Fill in templates as far as an inventory alone allows, without Ansible and without touching anything.

Filled in is what needs only variables of the inventory, Jinja's own filters and a few of Ansible's and the
suite's. What needs a fact, a lookup other than of a file, or another filter stays unknown: Ansible finds it
at run time, and the role that reads it checks it then. A lookup may make a secret or ask a vault: none is
made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.nativetypes import NativeEnvironment, NativeTemplate

from splitrail.inventory.fault import Fault
from splitrail.inventory.located import Opaque
from splitrail.inventory.reader import Inventory, Variable
from splitrail.inventory.vocabulary import is_template, template_names
from splitrail.rails import RailError
from splitrail.rails import parse as parse_rails
from splitrail.release import ReleaseError
from splitrail.release import parse as parse_release
from splitrail.topology import TopologyError
from splitrail.topology import load as load_topology
from splitrail.topology import parse as parse_topology

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Unknown(Exception):
    """A value that only Ansible can tell."""


class Wrong(Exception):
    """A value that cannot be: what it names does not exist, or is refused."""


class Values:
    """The values of one host, filled in when they are asked for."""

    def __init__(self, fleet: Fleet, host: str) -> None:
        self.host = host
        self.variables = fleet.inventory.of(host)
        self._fleet = fleet
        self._known: dict[str, Any] = {}
        self._open: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """The value; raises KeyError for one that is not declared, Unknown and Wrong."""
        if name not in self._known:
            value = self.variables[name].value
            if name in self._open:
                raise Wrong(f"{name} is defined by itself")
            self._open.add(name)
            try:
                self._known[name] = self.fill(value)
            except (Unknown, Wrong) as error:
                self._known[name] = error
            finally:
                self._open.discard(name)
        value = self._known[name]
        if isinstance(value, Unknown | Wrong):
            raise value
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or ``default`` where it is not declared or not known here."""
        try:
            return self[name]
        except (KeyError, Unknown, Wrong):
            return default

    def fault(self, name: str, said: str, cure: str) -> Fault:
        """A fault of this host's value of a variable, where it is declared; or of the host."""
        variable = self.variables.get(name)
        if variable is None:
            return self._fleet.inventory.fault(self.host, said, cure, name, (self.host,))
        return variable.fault(said, cure, (self.host,))

    def fill(self, value: Any) -> Any:
        """The value with every template in it filled in."""
        if isinstance(value, Opaque):
            raise Unknown("encrypted")
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not is_template(value):
            return value
        names, template = self._fleet.compiled(value)
        context = {name: self._name(name) for name in names}
        try:
            made = template.render(context)
            if not _is_plain(made):
                raise Unknown(f"not plain data: {type(made).__name__}")
            return made
        except (Unknown, Wrong):
            raise
        except Exception as error:  # whatever a template can raise: Ansible is the one to judge it
            raise Unknown(str(error)) from None

    def seen(self, name: str) -> Any:
        """As another variable sees it: what is wrong is said of that one, not of all that read it."""
        try:
            return self[name]
        except Wrong as error:
            raise Unknown(str(error)) from None

    def _name(self, name: str) -> Any:
        if name in self.variables:
            return self.seen(name)
        if name == "inventory_hostname":
            return self.host
        if name == "group_names":
            inventory = self._fleet.inventory
            return [group.name for group in inventory.groups_of(self.host) if group.name != "all"]
        return self._fleet.shared.get(name, jinja2.StrictUndefined(name=name))


class Fleet:
    """The values of all hosts; templates are parsed once."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.shared: dict[str, Any] = {
            "groups": {name: inventory.members(name) for name in inventory.groups},
            "hostvars": _HostVars(self),
            "inventory_dir": str(inventory.folder.resolve()),
            "lookup": _lookup,
        }
        self._hosts: dict[str, Values] = {}
        self._templates: dict[str, tuple[frozenset[str], jinja2.Template]] = {}
        self._environment = _Environment(undefined=jinja2.StrictUndefined)
        self._environment.filters.update(_FILTERS)

    def __getitem__(self, host: str) -> Values:
        if host not in self._hosts:
            self._hosts[host] = Values(self, host)
        return self._hosts[host]

    def compiled(self, text: str) -> tuple[frozenset[str], jinja2.Template]:
        """A template and the names that it reads; raises Unknown for one that needs more than is here."""
        if text not in self._templates:
            try:
                names = template_names(text)
                self._templates[text] = names, self._environment.from_string(text)
            except jinja2.TemplateError as error:
                raise Unknown(str(error)) from None
        return self._templates[text]


class _HostVars(Mapping[str, Any]):
    """What templates see as ``hostvars``."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __getitem__(self, host: str) -> Any:
        if host not in self._fleet.inventory.hosts:
            raise KeyError(host)
        return _OneHost(self._fleet[host])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fleet.inventory.hosts)

    def __len__(self) -> int:
        return len(self._fleet.inventory.hosts)


class _OneHost(Mapping[str, Any]):
    def __init__(self, values: Values) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values.seen(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.variables)

    def __len__(self) -> int:
        return len(self._values.variables)


def _is_plain(value: Any) -> bool:
    """Whether a value is data: no undefined name is left in it, and no generator."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _concat(values: Iterable[Any]) -> Any | None:
    """As Ansible since 2.19: an expression alone gives its own value, anything beside it a text."""
    given = [part for part in values if part != ""] or [""]
    return given[0] if len(given) == 1 else "".join(map(str, given))


class _Environment(NativeEnvironment):
    concat = staticmethod(_concat)


class _Template(NativeTemplate):
    environment_class = _Environment


_Environment.template_class = _Template


def _lookup(plugin: str, *words: str, **_options: Any) -> str:
    if plugin not in ("file", "ansible.builtin.file"):
        raise Unknown(f"lookup {plugin}")
    try:
        return Path(words[0]).read_text(encoding="utf-8").rstrip()
    except OSError as error:
        raise Wrong(f"names a file that cannot be read: {error}") from None


def _release(raw: Any, where: str = "") -> Any:
    try:
        parse_release(raw, where)
    except ReleaseError as error:
        raise Wrong(str(error)) from None
    return raw


def _topology(name: str, folder: str) -> Any:
    try:
        raw = load_topology(str(name), Path(folder))
        parse_topology(json.loads(json.dumps(raw)))
    except TopologyError as error:
        raise Wrong(str(error)) from None
    return raw


def _rails(raw: Any) -> Any:
    try:
        return parse_rails(raw)
    except RailError as error:
        raise Wrong(str(error)) from None


def _combine(first: Mapping[str, Any], *others: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    if options:
        raise Unknown("combine with options")
    found = dict(first)
    for other in others:
        found |= other
    return found


_FILTERS = {
    "combine": _combine,
    "from_yaml": lambda text: yaml.load(text, Loader=_Loader),  # noqa: S506  # a SafeLoader
    "splitrail_release": _release,
    "splitrail_topology_named": _topology,
    "splitrail_rails": _rails,
}


def value_of(values: Values, variable: Variable) -> Any:
    """A declaration's value on a host; raises Unknown and Wrong."""
    if values.variables.get(variable.name) is variable:
        return values[variable.name]
    return values.fill(variable.value)
