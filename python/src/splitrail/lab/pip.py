"""Where this machine's pip looks for packages, so that the nodes look there too."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from splitrail.lab.invoker import run_as_invoker
from splitrail.lab.run import LabError

# Only where packages come from: a person's habits (require-virtualenv, user, target) are no node's.
_SOURCES = frozenset(
    {"index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "client-cert"}
    | {"retries", "prefer-binary", "only-binary"}
)
# The node keeps its own trust store, which holds this machine's certificates already.
_TRUST_STORE = Path("/etc/ssl")


@dataclass(frozen=True)
class PipConfig:
    """A pip.conf and the local folders that it names."""

    text: str
    paths: tuple[Path, ...]


def from_machine() -> PipConfig:
    """The effective settings of the pip beside this Python; none when it has no pip."""
    try:
        listing = run_as_invoker([sys.executable, "-m", "pip", "config", "list"])
    except LabError as error:
        if "No module named pip" in str(error):
            return PipConfig("", ())
        raise
    return parse(listing)


def parse(listing: str) -> PipConfig:
    """Make a pip.conf of what `pip config list` printed; as in pip, the environment wins over files."""
    sections: dict[str, dict[str, str]] = defaultdict(dict)
    environment: dict[str, str] = {}
    for line in listing.splitlines():
        name, equals, literal = line.partition("=")
        section, _, key = name.rpartition(".")
        if not equals or key not in _SOURCES:
            continue
        value = str(ast.literal_eval(literal))
        if section == ":env:":
            environment[key] = value
        else:
            sections[section][key] = value
    # An environment setting beats the same key in every section.
    for values in sections.values():
        for key in environment:
            values.pop(key, None)
    sections["global"].update(environment)
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {_indented(value)}\n" for key, value in sorted(values.items()))
        for section, values in sorted(sections.items())
        if values
    )
    words = [word for values in sections.values() for value in values.values() for word in value.split()]
    return PipConfig(text, tuple(sorted({path for word in words if (path := _local(word))})))


def _indented(value: str) -> str:
    # configparser takes indented lines as more of the same value.
    return value.strip().replace("\n", "\n    ")


def _local(word: str) -> Path | None:
    """The folder or file of this machine that `word` names, if it names one."""
    if word.startswith("/"):
        path = Path(word)
    elif word.startswith("file:"):
        path = Path(unquote(urlsplit(word).path))
        # A simple index (PEP 503) on disk often links to package files beside itself.
        if path.name == "simple":
            path = path.parent
    else:
        return None
    return None if path.is_relative_to(_TRUST_STORE) else path
