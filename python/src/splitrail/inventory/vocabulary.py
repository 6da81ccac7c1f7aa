"""Which variables there are, and what each may hold: a JSON schema made of the roles' argument specs.

A variable is known when a role's specs declare it, a model of `splitrail.inventory.model` or the lab's does,
it is Ansible's own, or some playbook or template of the inventory reads it. One that nobody reads is
misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from splitrail.inventory.model import ANSIBLE, MAGIC, Cluster, Connection
from splitrail.lab.spec import Lab
from splitrail.project import ProjectError

Schema = dict[str, Any]
# Conditions are templates without braces.
_CONDITIONS = frozenset({"when", "that", "failed_when", "changed_when", "until"})
_SET = re.compile(r"^\s*(?:ansible\.builtin\.)?set_fact:\n((?:[ ]{4,}.*\n)+)", re.MULTILINE)
_TYPES = {
    "str": ["string", "integer"],  # an integer cannot be read in two ways; 5.10 and `on` can
    "path": ["string"],
    "int": ["integer"],
    "float": ["number"],
    "bool": ["boolean"],
    "list": ["array"],
    "dict": ["object"],
}
# What a name says of its unit. A role that takes -1 says so in the description.
_AMOUNT = re.compile(r"_(gib|mib|s|h|ms|gbps|seconds|timeout|retries|iterations|us)$")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Tolerant(_Loader):  # type: ignore[misc]  # the base is chosen when this runs
    """Passes over tags that only Ansible knows."""


_Tolerant.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


class _Every(dict[str, Any]):
    """Filters or tests of which Ansible may have any: the names that a template reads do not hang on them."""

    def get(self, _name: str, _default: Any = None) -> Any:
        return str


_environment = jinja2.Environment(autoescape=False)  # noqa: S701 (variables, not HTML)
_environment.filters = _Every()
_environment.tests = _Every()


@dataclass(frozen=True)
class Vocabulary:
    """``typed``: the schema of each variable that has a type. ``read``: names that playbooks read. ``set``:
    names that roles and playbooks set while they run. ``roles``: whose variable each typed one is."""

    typed: Mapping[str, Schema]
    definitions: Mapping[str, Schema]
    read: frozenset[str]
    made: frozenset[str]
    roles: Mapping[str, str]

    def known(self) -> set[str]:
        """What may be declared, beside what the inventory's own templates read."""
        return set(self.typed) | self.read | ANSIBLE

    def readable(self) -> set[str]:
        """What a template may read, beside what the inventory declares."""
        return self.known() | self.made | MAGIC


def load(root: Path) -> Vocabulary:
    """Read the roles and playbooks of a project. Raises ProjectError for a file that is not YAML."""
    typed: dict[str, Schema] = {}
    roles: dict[str, str] = {}
    for path in sorted((root / "roles").glob("*/meta/argument_specs.yml")):
        role = path.parents[1].name
        for entry in (_yaml(path) or {}).get("argument_specs", {}).values():
            for name, spec in (entry.get("options") or {}).items():
                typed.setdefault(name, from_spec(name, spec))
                roles.setdefault(name, role)
    definitions: dict[str, Schema] = {}
    for model, prefix in ((Cluster, ""), (Connection, ""), (Lab, "lab_")):
        schema = model.model_json_schema(by_alias=True)
        definitions |= schema.get("$defs", {})
        typed |= {
            name: {key: value for key, value in of.items() if key != "title"}
            for name, of in schema["properties"].items()
            if name.startswith(prefix)
        }
    playbooks = [root / "site.yml", *sorted((root / "playbooks").rglob("*.yml"))]
    tasks = [*playbooks, *sorted((root / "roles").glob("*/tasks/*.yml"))]
    return Vocabulary(
        typed,
        definitions,
        frozenset(name for path in playbooks if path.is_file() for name in _read_by(_yaml(path))),
        frozenset(name for path in tasks if path.is_file() for name in _set_by(path.read_text("utf-8"))),
        roles,
    )


def document(vocabulary: Vocabulary) -> Schema:
    """One JSON schema, draft 2020-12, of a file of group_vars or host_vars, for editors and other tools.

    Wherever a value may stand a template may; the check itself fills it in where it can.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Variables of a splitrail inventory",
        "type": "object",
        "properties": {name: or_template(schema) for name, schema in sorted(vocabulary.typed.items())},
        "$defs": dict(vocabulary.definitions),
    }


def from_spec(name: str, spec: Mapping[str, Any]) -> Schema:
    """The schema of one option of an argument spec, stricter than Ansible where roles would misread it:
    Ansible takes ``a,b`` for a list and ``"no"`` for a bool, and hands on the text."""
    schema: Schema = {}
    kind = spec.get("type", "str")
    if kind in _TYPES:
        kinds = _TYPES[kind]
        nullable = "default" in spec and spec["default"] is None
        schema["type"] = [*kinds, "null"] if nullable else kinds
    if "choices" in spec:
        schema["enum"] = list(spec["choices"])
        schema.pop("type", None)
    words = spec.get("description", "")
    said = " ".join(words) if isinstance(words, list) else str(words).strip()
    schema["description"] = said
    if kind == "list" and "elements" in spec:
        schema["items"] = from_spec("", {"type": spec["elements"], "options": spec.get("options")})
    elif spec.get("options"):
        schema["properties"] = {key: from_spec(key, of) for key, of in spec["options"].items()}
        schema["additionalProperties"] = False
        schema["required"] = [key for key, of in spec["options"].items() if of.get("required")]
    if kind in ("int", "float"):
        if name == "port" or name.endswith("_port"):
            schema |= {"minimum": 1, "maximum": 65535}
        elif _AMOUNT.search(name) and "-1" not in said:
            schema["minimum"] = 0
    return schema


def or_template(schema: Schema) -> Schema:
    """The schema with a template allowed in place of the value, and of each part of it."""
    inner = dict(schema)
    if "items" in inner:
        inner["items"] = or_template(inner["items"])
    if "properties" in inner:
        inner["properties"] = {key: or_template(of) for key, of in inner["properties"].items()}
    return {"anyOf": [inner, {"type": "string", "pattern": r"\{[{%]"}]}


@lru_cache(maxsize=4096)
def template_names(text: str) -> frozenset[str]:
    """The variables that a template reads. Raises jinja2.TemplateSyntaxError."""
    return frozenset(jinja2.meta.find_undeclared_variables(_environment.parse(text)))


def is_template(value: Any) -> bool:
    """Whether Ansible would fill something in."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def strings(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _read_by(node: Any, condition: bool = False) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _read_by(value, key in _CONDITIONS)
    elif isinstance(node, list):
        for item in node:
            yield from _read_by(item, condition)
    elif isinstance(node, str) and (condition or is_template(node)):
        try:
            yield from template_names(f"{{{{ {node} }}}}" if condition and "{{" not in node else node)
        except jinja2.TemplateSyntaxError:
            return  # Ansible's own syntax check names it


def _set_by(text: str) -> Iterator[str]:
    for facts in _SET.findall(text):
        yield from re.findall(r"^\s+(\w+):", facts, re.MULTILINE)


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Tolerant)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{path}: not readable: {error}") from error
