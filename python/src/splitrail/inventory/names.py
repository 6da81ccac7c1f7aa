"""The names of variables: declared and read by nobody, or read by a template and declared by nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from splitrail.inventory.fault import Fault, near
from splitrail.inventory.reader import Inventory, Variable
from splitrail.inventory.vocabulary import Vocabulary, is_template, strings, template_names

SECRET = re.compile(
    r"_(token|password|passphrase|secret|api_keys?|private_key)$|^ansible_.*(_pass|password)$"
)


def faults(inventory: Inventory, vocabulary: Vocabulary, extra: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the names, and secrets in plain text. ``extra``: the variables of ``-e``."""
    declared = inventory.declared
    readers: dict[str, list[Variable]] = {}
    for variable in declared:
        for text in filter(is_template, strings(variable.value)):
            try:
                for name in template_names(text):
                    readers.setdefault(name, []).append(variable)
            except jinja2.TemplateSyntaxError as error:
                cure = "close every {{ and {% and quote texts"
                yield variable.fault(f"is no template: {error.message}", cure)
    known = vocabulary.known() | set(readers)
    for variable in declared:
        yield from _declared(variable, known)
    for name in extra:
        if name not in known:
            said = f"is no variable: no role, playbook or template reads it{near(name, known)}"
            yield Fault("-e", 0, name, said, "correct the name, or leave it out")
    if inventory.encrypted:
        return  # what is declared there is not known here
    readable = vocabulary.readable() | {variable.name for variable in declared} | set(extra)
    for name in readers.keys() - readable:
        for variable in readers[name]:
            cure = f"correct the name in the template, or declare {name} in group_vars"
            yield variable.fault(f"reads {name}, which nobody declares{near(name, readable)}", cure)


def _declared(variable: Variable, known: set[str]) -> Iterator[Fault]:
    name, value = variable.name, variable.value
    if name not in known:
        yield variable.fault(
            f"is no variable: no role, playbook or template reads it{near(name, known)}",
            "correct the name, or take the line out; `splitrail inventory schema` lists all",
        )
    elif SECRET.search(name) and isinstance(value, str) and value and not is_template(value):
        cure = f"write what `ansible-vault encrypt_string --name {name}` prints, or look a file up"
        yield variable.fault("is a secret in plain text", cure)
