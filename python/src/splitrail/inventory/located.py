"""YAML with the line of every value, and with the mistakes that YAML itself lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from splitrail.inventory.fault import Fault

# The C parser where PyYAML has it: an inventory is read before each run.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Place = tuple[str | int, ...]


class Opaque:
    """A value that cannot be looked into: encrypted by ansible-vault, or of a tag that only Ansible knows."""

    def __repr__(self) -> str:
        return "(encrypted)"


class _Loader(_Base):  # type: ignore[misc]  # the base is chosen when this runs
    """Safe; tags of Ansible's own (``!vault``, ``!unsafe``) become opaque values."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: Opaque())


@dataclass
class Document:
    """A file's value, and the line of each part of it by its path."""

    file: str
    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    encrypted: bool = False

    def line(self, place: Place) -> int:
        """The line of a part, or of the nearest part around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(path: Path, shown: str) -> Document:
    """Read a file; what is wrong with it as YAML is in ``faults``, and the value is then None."""
    document = Document(shown)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        document.faults.append(
            Fault(shown, 0, "", f"cannot be read: {error}", "make it a readable text file")
        )
        return document
    if text.startswith("$ANSIBLE_VAULT"):
        document.encrypted = True
        return document
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.faults += _walk(node, (), document)
            document.value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        said = f"not YAML: {error.problem or error.context}"
        cure = "correct the indentation, quotes or brackets there; a value that begins with {{ wants quotes"
        document.faults.append(Fault(shown, line, "", said, cure))
    except (yaml.YAMLError, ValueError) as error:
        document.faults.append(Fault(shown, 0, "", f"not YAML: {error}", "correct it"))
    finally:
        loader.dispose()
    return document


def _walk(node: yaml.Node, place: Place, document: Document) -> Iterator[Fault]:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            line = key.start_mark.line + 1
            if inner in document.lines and key.value != "<<":
                yield Fault(
                    document.file,
                    line,
                    ".".join(map(str, inner)),
                    f"stands here and in line {document.lines[inner]}, and Ansible takes the last",
                    "take one of them out",
                )
            document.lines[inner] = line
            yield from _walk(value, inner, document)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _walk(item, (*place, position), document)
