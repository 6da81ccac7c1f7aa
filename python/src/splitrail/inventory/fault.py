"""One thing that is wrong with an inventory, and how it is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

# Of more hosts than these only the number is told.
_NAMED = 3


@dataclass(frozen=True)
class Fault:
    """``file`` is relative to where the command runs, ``line`` counts from 1 (0: the file as a whole);
    ``key`` is the variable with the path inside it, or the group or host; ``hosts`` are those that it is
    wrong on."""

    file: str
    line: int
    key: str
    said: str
    cure: str
    hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        on = f" on {_listed(self.hosts)}" if self.hosts else ""
        key = f"{self.key}{on}: " if self.key or on else ""
        return f"{where}: {key}{self.said}; cure: {self.cure}"


class InventoryError(Exception):
    """An inventory that no run is started with; ``faults`` holds every one found."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def merged(faults: Iterable[Fault]) -> list[Fault]:
    """Each once, in the order of files and lines, with all the hosts that it is wrong on."""
    hosts: dict[Fault, list[str]] = {}
    for fault in faults:
        hosts.setdefault(replace(fault, hosts=()), []).extend(fault.hosts)
    found = [replace(fault, hosts=tuple(dict.fromkeys(names))) for fault, names in hosts.items()]
    return sorted(found, key=lambda fault: (fault.file, fault.line, fault.key, fault.said))


def near(word: str, known: Iterable[str]) -> str:
    """A question for the nearest of the known words, or nothing."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {found[0]}?" if found else ""


def _listed(hosts: tuple[str, ...]) -> str:
    more = len(hosts) - _NAMED
    return ", ".join(hosts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
