"""What a kernel command line says of declared options.

An option is declared by its name with a value (``iommu: pt``), an empty value for a bare flag
(``nokaslr: ""``), or a list for a name that collects several (``pci: [realloc=off, bfsort]``). Standard
library only: this file travels to the nodes.
"""

from __future__ import annotations

import re
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_.-]+")
# No blank, quote, dollar or backtick: the value goes through a shell file of GRUB's.
VALUE = re.compile(r"[A-Za-z0-9_.,:=/+@!~-]*")

Declared = dict[str, "str | list[str]"]


def declared(options: dict[str, Any]) -> Declared:
    """The options, checked, numbers as text. Raises ValueError that names the option and the cure."""
    checked: Declared = {}
    for name, value in options.items():
        if not NAME.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no name of a kernel option")
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"{name}: an empty list declares nothing; leave the option out")
        for item in values:
            # YAML reads on, off, yes and no as booleans.
            if isinstance(item, bool):
                raise ValueError(
                    f'{name}: write the value in quotes ("on", "off"), and "" for an option without value'
                )
            if not isinstance(item, (str, int)) or not VALUE.fullmatch(str(item)):
                raise ValueError(f"{name}: {item!r} cannot stand on a kernel command line")
            if isinstance(value, list) and not str(item):
                raise ValueError(f"{name}: an empty value in a list declares nothing")
        checked[str(name)] = [str(item) for item in value] if isinstance(value, list) else str(value)
    return checked


def render(options: Declared) -> list[str]:
    """The options as they stand on a command line."""
    words = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            words.append(f"{name}={item}" if item else name)
    return words


def words_of(line: str) -> list[str]:
    """The words of a command line; a quoted one holds blanks. What follows ``--`` is for init."""
    words = [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*")+', line)]
    return words[: words.index("--")] if "--" in words else words


def values_of(name: str, words: list[str]) -> list[str]:
    """All values that an option has there, in order; a bare flag has the value "". To the kernel - is _."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        if key.replace("-", "_") == name.replace("-", "_"):
            found.append(value)
    return found


def has(name: str, want: str | list[str], words: list[str]) -> bool:
    """Whether the option is there as declared."""
    values = values_of(name, words)
    if isinstance(want, list):
        return set(want) <= set(_parts(values)) and not contradicts(name, want, words)
    return bool(values) and set(values) == {want}


def contradicts(name: str, want: str | list[str], words: list[str]) -> list[str]:
    """The words that say something else of this option, as they would stand there."""
    values = values_of(name, words)
    if not isinstance(want, list):
        return [f"{name}={value}" if value else name for value in values if value != want]
    against = []
    for value in _parts(values):
        for wanted in want:
            key, _, setting = wanted.partition("=")
            other, _, found = value.partition("=")
            if (other == key and found != setting) or value == f"no{wanted}":
                against.append(f"{name}={value}")
    return against


def _parts(values: list[str]) -> list[str]:
    return [part for value in values for part in value.split(",")]
