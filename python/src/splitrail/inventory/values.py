"""What variables hold, judged by the JSON schema that is made of the roles' specs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Network
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError

from splitrail.inventory.fault import Fault, near
from splitrail.inventory.located import Opaque
from splitrail.inventory.names import SECRET
from splitrail.inventory.reader import Inventory, Variable
from splitrail.inventory.resolve import Fleet, Unknown, Wrong, value_of
from splitrail.inventory.vocabulary import Vocabulary, is_template, strings

_FORMATS = {"ipv4network": lambda text: _reads(IPv4Network, text)}
_SHOWN = 60  # characters of a value in a message
_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list (`[a, b]`, or lines that begin with `- `)",
    "object": "a mapping (`{key: value}`, or `key: value` lines)",
    "null": "null",
}


def faults(inventory: Inventory, vocabulary: Vocabulary, fleet: Fleet) -> Iterator[Fault]:
    """Every declaration as it stands, and each host's own value where a template makes it."""
    validators = _Validators(vocabulary)
    templated = {one: any(map(is_template, strings(one.value))) for one in inventory.declared}
    for variable, made in templated.items():
        if not made:
            yield from validators.faults(variable, variable.value, ())
    for host in inventory.hosts:
        values = fleet[host]
        for variable in values.variables.values():
            if not templated.get(variable):
                continue
            try:
                value = value_of(values, variable)
            except Unknown:
                continue
            except Wrong as error:
                yield variable.fault(str(error), "correct what it names", (host,))
                continue
            yield from validators.faults(variable, value, (host,))


class _Validators:
    """The schemas, compiled when they are first used; a value that was found good is not looked at again."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._made: dict[str, Draft202012Validator] = {}
        self._good: set[tuple[str, str]] = set()

    def faults(self, variable: Variable, value: Any, hosts: tuple[str, ...]) -> Iterator[Fault]:
        name = variable.name
        schema = self._vocabulary.typed.get(name)
        if schema is None or isinstance(value, Opaque) or (name, repr(value)) in self._good:
            return
        whole = {**schema, "$defs": dict(self._vocabulary.definitions)}
        if name not in self._made:
            self._made[name] = Draft202012Validator(whole, validate_formats=True, formats=_FORMATS)
        errors = list(self._made[name].iter_errors(_plain(value)))
        if not errors:
            self._good.add((name, repr(value)))
        for error in errors:
            yield _explain(variable, _around(whole, error), error, hosts)


def _around(schema: Mapping[str, Any], error: ValidationError) -> Mapping[str, Any]:
    """The part of the schema whose keyword a value broke."""
    part: Any = schema
    for step in error.schema_path[:-1]:
        part = part[int(step)] if isinstance(part, list) else part[step]
    return part if isinstance(part, Mapping) else {}


def _explain(
    variable: Variable, schema: Mapping[str, Any], error: ValidationError, hosts: tuple[str, ...]
) -> Fault:
    """One fault of a value: what it is, what may stand there, and the cure."""
    place, keyword = tuple(error.instance_path), error.schema_path[-1]
    value: Any = error.instance
    if keyword == "additionalProperties":
        allowed = list(schema["properties"])
        extra = sorted(set(value) - set(allowed))
        said = f"{', '.join(extra)} is no key of it; allowed: {', '.join(allowed)}{near(extra[0], allowed)}"
        return variable.fault(said, "correct the key or take it out", hosts, (*place, extra[0]))
    if keyword == "required":
        missing = ", ".join(key for key in schema["required"] if key not in value)
        return variable.fault(f"lacks {missing}", f"add {missing}", hosts, place)
    allowed_words = _allowed(schema)
    got = "(hidden)" if SECRET.search(variable.name) else _shown(value)
    asked = near(value, map(str, schema.get("enum", ()))) if isinstance(value, str) else ""
    said = f"is {got}; allowed: {allowed_words}{asked}"
    return variable.fault(said, _cure(value, schema, allowed_words), hosts, place)


def _cure(value: Any, schema: Mapping[str, Any], allowed: str) -> str:
    if value is None:
        return f"write {allowed}, or take the line out"
    if isinstance(value, float | bool) and "string" in _kinds(schema):
        return "put it in quotes: YAML reads it as another value than a text"
    if isinstance(value, str) and is_template(value):
        return "correct the template"
    return f"write {allowed}"


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    # A text may look like a number; nobody needs to be told.
    return [kind for kind in kinds if not (kind == "integer" and "string" in kinds)]


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_WORDS[kind] for option in schema["anyOf"] for kind in _kinds(option))
    words = " or ".join(_WORDS[kind] for kind in _kinds(schema))
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None:
        words += f" from {low} " + (f"to {high}" if high is not None else "on")
    if above is not None:
        words += f" above {above}"
    if "pattern" in schema:
        words += f" like {schema['pattern']}"
    if "format" in schema:
        words += f" that is an {schema['format']}"
    return words or "what the schema says"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _reads(kind: Callable[[str], object], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    """As JSON has it: keys are texts, and what YAML has besides (dates, encrypted values) is one too."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
